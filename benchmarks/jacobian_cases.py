"""Which way to the Jacobian is timed in which case of `linearize_peers.py`, and what batches it gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import jacobian_peers as peers
from linearize_roberta import EXAMPLES

from tangentlora import Network
from tangentlora.models.network import Batch
from tangentlora.models.targets import Target


@dataclass(frozen=True)
class Peer:
    """A way to the Jacobian; it does the `part` of the targets, and `scale` makes up for the rest.

    `along` is the axis of (N,K,m,n) that its lists run over; `counts` says that it counts for a target,
    `vocabulary` that it takes the head for the whole of it, and `contrasts` that it is given the contrasts of
    the outputs in their place. It gets its prompts in one batch if `whole`, or in batches of `most` at most.
    """

    name: str
    run: Callable[..., peers.Dense]
    part: Callable[[Sequence[Target]], Sequence[Target]] = lambda targets: targets
    scale: int = 1
    along: int = 0
    counts: bool = True
    vocabulary: bool = False
    contrasts: bool = False
    whole: bool = False
    most: int = EXAMPLES

    def batches(self, network: Network, inputs: Sequence[str]) -> list[Batch]:
        """Return the batches that it gets."""
        features = network.reader.encode(inputs)
        if self.whole:
            return [network.batch(features, tuple(range(len(features))))]
        return list(network.batches(features, self.most))


def middle(targets: Sequence[Target]) -> Sequence[Target]:
    """Return a query and a value matrix of the two layers in the middle."""
    half = len(targets) // 2
    return [targets[half - 2], targets[half + 1]]


PUBLISHED = "the published code's jacrev"
OTHERS = (
    Peer("jacrev prompt by prompt", peers.by_example, counts=False, most=1),
    Peer("Opacus", peers.opacus, along=1),
    Peer(
        "Opacus, its records put back from outside", partial(peers.opacus, again=True), along=1, counts=False
    ),
    Peer("Opacus, told the contrast", peers.opacus, along=1, counts=False, contrasts=True),
    Peer("curvlinops prompt by prompt", peers.curvlinops, most=1),
)
LAST = (
    Peer(PUBLISHED, peers.published, vocabulary=True, whole=True),
    *OTHERS,
    Peer("curvlinops at once", peers.curvlinops_batch),
)
CASES = {
    "last": LAST,
    "all": (Peer(PUBLISHED, peers.published, middle, 12, vocabulary=True, whole=True), *OTHERS),
    "natural": LAST,
}
WORK = {
    "last": "query and value of the last layer",
    "all": "all 24 query and value matrices",
    "natural": "query and value of the last layer, prompts of natural length",
}
