"""A smaller adapter that gives the same outputs on the data, beside truncation by weight energy.

The trained network is linearised at W + δ: z(δ') = f(W+δ) + J(δ' − δ). On that problem the update is made
smaller with its outputs kept; then the real network is asked, and corrected where the tangent was wrong.
Outputs are compared without their mean over the K outputs, which softmax ignores; those of completions, where
K = 1, as they are.
Source: Jang, Lee, Ryu 2024, Theorem 1, for the count; the rest is derived: docs/theory.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from tangentlora.blocks import Factors
from tangentlora.data import Examples
from tangentlora.errors import InputError
from tangentlora.models.network import Network
from tangentlora.models.targets import Target
from tangentlora.problem.losses import Loss
from tangentlora.studies.compression import Compression
from tangentlora.studies.compressor import Compressor
from tangentlora.studies.limits import check_compression
from tangentlora.theory.output_reduction import parameters, reduce_by_layers


def compress_update(
    network: Network,
    targets: Sequence[Target],
    factors: Factors,
    train: Examples,
    test: Examples | None = None,
    *,
    loss: Loss,
    rank: int | None = None,
    tolerance: float | None = None,
    polish: bool = True,
    batch_size: int = 32,
    progress: bool = False,
) -> Compression:
    """Make the update δ_t = u_t v_tᵀ of a network smaller, with its outputs on `train` kept.

    Without `rank` and `tolerance` Theorem 1 reduces it: Σ_t r_t(r_t+1)/2 ≤ c. With `rank` every layer keeps
    at most that many singular directions, those that the outputs need most; with `tolerance` as few in all
    as a search by doubling and halving finds to change no centred output on `train` by more than that,
    measured on the real network; with both, as few at no more than `rank` in a layer.

    With `polish` what is kept is refitted, by the shortest changes, to the outputs of the given adapter on
    the real network. So is what truncation by weight energy keeps at the same ranks or number of directions,
    and the one goes on that leaves the weights nearer to where they were. Without it what is kept stays as it
    was. Inputs that are not in `train` are measured on `test`, which serves nothing else; labels are for
    accuracy and loss only.

    The network is afterwards as before, bit for bit. Equal arguments give equal factors on one machine with
    one number of threads.

    Raises InputError for rank < 1, a tolerance that is not positive or that is not met, saying what was
    reached, and in the cases of `linearize`, `Problem` and `attached`.
    """
    check_compression(rank, tolerance)
    job = Compressor(
        network, tuple(targets), factors, train, test, loss, tolerance, polish, batch_size, progress
    )
    if tolerance is not None:
        reduced, final = _smallest(job, rank, tolerance)
    elif rank is not None:
        counts = [min(rank, len(sigma)) for _, sigma, _ in job.directions.svds.values()]
        reduced, final = job.at_size(job.orders(rank), sum(counts))
    else:
        reduced = final = reduce_by_layers(job.problem, job.factors)
        if polish:
            energy = job.directions.strongest({name: u.shape[1] for name, (u, _) in reduced.items()})
            final = job.refitted([reduced, energy])
    ranks = {name: u.shape[1] for name, (u, _) in final.items()}
    method = "theorem 1" if rank is None and tolerance is None else "by outputs"
    adapters = {"no adapter": job.problem.zero(), "given": factors, method: reduced}
    if polish:
        adapters["polished"] = final
    adapters["energy, same ranks"] = job.directions.strongest(ranks)
    adapters["energy, same size"] = job.directions.strongest_within(parameters(final))
    rows = tuple(job.row(name, adapter) for name, adapter in adapters.items())
    sizes = {"train": len(train)} | ({} if test is None else {"test": len(test)})
    return Compression(final, rows, job.problem.constraints, tolerance, sizes)


def _smallest(job: Compressor, rank: int | None, tolerance: float) -> tuple[Factors, Factors]:
    """Return reduced and final factors of the fewest directions found that meet the tolerance."""
    orders = job.orders(rank)
    most = sum(min(rank or len(sigma), len(sigma)) for _, sigma, _ in job.directions.svds.values())
    low, high = -1, 0
    while True:
        found = job.at_size(orders, high)
        reached = job.largest_change(found[1])
        if reached <= tolerance:
            break
        if high == most:
            raise InputError(
                f"got the tolerance {tolerance:.1e}, expected one that can be met: with all {most} "
                f"directions that are allowed an output still changes by {reached:.1e}: raise "
                "--tolerance or --rank"
            )
        low, high = high, min(max(1, 2 * high), most)
    while high - low > 1:
        middle = (low + high) // 2
        smaller = job.at_size(orders, middle)
        if job.largest_change(smaller[1]) <= tolerance:
            high, found = middle, smaller
        else:
            low = middle
    return found
