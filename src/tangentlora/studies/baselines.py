"""What a practitioner would do instead: no training, a classifier beside the network, or LoRA by PEFT."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tangentlora.adapters.train import train_lora, whole_weights
from tangentlora.blocks import Factors
from tangentlora.data import Examples, Splits
from tangentlora.errors import InputError
from tangentlora.models.embeddings import embeddings
from tangentlora.models.network import Network
from tangentlora.models.update import updated
from tangentlora.studies.measure import dev_merit
from tangentlora.studies.prepare import scores

INVERSE_REGULARISATIONS = tuple(10 ** (k / 2) for k in range(-6, 7))
"""The values of C, from 1e-3 to 1e3 and two to a decade, that `logistic_regression` chooses among."""

LEARNING_RATES = (1e-4, 3e-4, 1e-3)
"""Those that `peft_lora` chooses among."""

_ABSENT = -700.0
"""The logit of a label without training examples: e^-700 is near the smallest number there is."""


@dataclass(frozen=True)
class Baseline:
    """What one method reaches on the splits, with what the dev set chose for it.

    `scores` holds `train_accuracy` (in [0, 1]), `train_loss` (mean cross-entropy in nats) and the same for
    dev and test where there are such sets. `seconds` is the wall time of all of it, the choice included.
    """

    name: str
    variant: str
    chosen: dict[str, float | int | str]
    scores: dict[str, float]
    trained_parameters: int
    seconds: float


def better(candidate: Mapping[str, float], incumbent: Mapping[str, float]) -> bool:
    """Say whether the scores of a candidate beat those of the incumbent on the dev set.

    The higher `dev_accuracy` wins and at equal accuracy the lower `dev_loss`; outputs whose loss is not
    finite lose to all whose loss is. A full tie stays with the incumbent: offer the smaller model and the
    earlier point first.
    """
    return dev_merit(candidate) > dev_merit(incumbent)


def zero_shot(network: Network, splits: Splits, batch_size: int = 32) -> Baseline:
    """Score the outputs at the pretrained weights W."""
    start = time.perf_counter()
    reached = _scores(splits, lambda part: network.predict(part.inputs, batch_size))
    return Baseline("zero-shot", "zero-shot", {}, reached, 0, time.perf_counter() - start)


def logistic_regression(network: Network, splits: Splits, batch_size: int = 32) -> Baseline:
    """Fit scikit-learn's LogisticRegression to frozen embeddings; the dev set chooses C.

    min over (w, b) of C Σ_i CE(w φ_i + b, y_i) + ½‖w‖²_F for each C of `INVERSE_REGULARISATIONS`. The
    embeddings φ (see :func:`tangentlora.models.embeddings.embeddings`) are centred and brought to a mean
    square norm of 1 over the training set, so that one grid suits every network. Their coordinates are not
    standardised one by one: with fewer examples than coordinates that amplifies noise.

    Raises `InputError` without a dev set or without scikit-learn.
    """
    dev = _required_dev(splits)
    sklearn = _sklearn_linear_model()
    start = time.perf_counter()
    phi = {part: embeddings(network, part.inputs, batch_size) for part in splits.parts.values()}
    centre = phi[splits.train].mean(dim=0)
    scale = (phi[splits.train] - centre).square().sum(dim=1).mean().sqrt().item() or 1.0
    x = {part: ((rows - centre) / scale).numpy() for part, rows in phi.items()}
    best: tuple[float, Any, dict[str, float]] | None = None
    for C in INVERSE_REGULARISATIONS:
        # The usual tolerance of 1e-4 stops large C a few percent away from the minimum.
        model = sklearn.LogisticRegression(C=C, tol=1e-8, max_iter=100_000)
        model.fit(x[splits.train], splits.train.labels)
        measured = scores(_logits(model, x[dev], len(dev.label_names)), dev.labels, "dev")
        if best is None or better(measured, best[2]):
            best = C, model, measured
    assert best is not None, "the grid is not empty"
    C, model, _ = best
    reached = _scores(splits, lambda part: _logits(model, x[part], len(part.label_names)))
    size = int(model.coef_.size + model.intercept_.size)
    seconds = time.perf_counter() - start
    name = "logistic regression on frozen embeddings"
    return Baseline(name, "logistic-regression", {"C": C}, reached, size, seconds)


def peft_lora(
    network: Network,
    splits: Splits,
    modules: Sequence[str] = ("query", "value"),
    layers: str = "all",
    *,
    rank: int = 8,
    alpha: float = 16,
    learning_rates: Sequence[float] = LEARNING_RATES,
    epochs: int = 20,
    minibatch_size: int = 8,
    weight_decay: float = 0.01,
    seed: int = 0,
    batch_size: int = 32,
) -> Baseline:
    """Train LoRA on the real network by :func:`tangentlora.adapters.train.train_lora`.

    Each learning rate gives one run of `epochs` epochs, all from one initialisation, and the dev set is
    scored after every epoch: it chooses the learning rate and the epoch together. The chosen adapter alone
    sees the test set, once. `modules` and `layers` are those of `Network.targets`; `minibatch_size` is that
    of a step and of the dev set's small batches, `batch_size` that of the final scores.

    Raises `InputError` without a dev set or a learning rate, and in the cases of `train_lora`.
    """
    dev = _required_dev(splits)
    if not learning_rates:
        raise InputError("got no learning rate, expected at least one; give for example 3e-4.")
    start = time.perf_counter()
    targets = whole_weights(network.module, network.targets(modules, layers))
    points: list[_Point] = []  # at most one: the best so far

    def visit(learning_rate: float, epoch: int, factors: Factors) -> None:
        measured = scores(network.predict(dev.inputs, minibatch_size), dev.labels, "dev")
        if not points or better(measured, points[0].measured):
            points[:] = [_Point(learning_rate, epoch, measured, factors)]

    for learning_rate in sorted(learning_rates):
        train_lora(
            network,
            targets,
            splits.train.inputs,
            splits.train.labels,
            rank=rank,
            alpha=alpha,
            learning_rate=learning_rate,
            epochs=epochs,
            batch_size=minibatch_size,
            weight_decay=weight_decay,
            seed=seed,
            on_epoch=partial(visit, learning_rate),
        )
    (best,) = points
    with updated(network, targets, best.factors):
        reached = _scores(splits, lambda part: network.predict(part.inputs, batch_size))
    size = rank * sum(sum(target.shape) for target in targets)
    chosen: dict[str, float | int | str] = {"learning_rate": best.learning_rate, "epoch": best.epoch}
    seconds = time.perf_counter() - start
    return Baseline(f"LoRA by PEFT, r = {rank}", "peft-lora", chosen, reached, size, seconds)


@dataclass(frozen=True)
class _Point:
    """A LoRA run after one of its epochs."""

    learning_rate: float
    epoch: int
    measured: dict[str, float]
    factors: Factors


def _scores(splits: Splits, outputs: Callable[[Examples], Float[Tensor, "N K"]]) -> dict[str, float]:
    """Return accuracy and loss on every set that there is."""
    reached: dict[str, float] = {}
    for which, examples in splits.parts.items():
        reached |= scores(outputs(examples), examples.labels, which)
    return reached


def _logits(model: Any, x: Float[NDArray[np.float64], "N H"], K: int) -> Float[Tensor, "N K"]:
    """Return outputs whose softmax are the model's probabilities, that of a label it never saw being 0."""
    z = torch.full((len(x), K), _ABSENT, dtype=torch.float64)
    decisions = torch.from_numpy(model.decision_function(x)).double()
    if decisions.dim() == 1:  # two labels have one output, that of the second against the first
        decisions = torch.stack([torch.zeros_like(decisions), decisions], dim=1)
    z[:, model.classes_.tolist()] = decisions.log_softmax(dim=1)
    return z


def _required_dev(splits: Splits) -> Examples:
    if splits.dev is None:
        raise InputError(
            f"got {splits.source} without a dev set, expected one to choose by; give a dev set, as k-shot "
            "folders have."
        )
    return splits.dev


def _sklearn_linear_model() -> Any:
    try:
        from sklearn import linear_model
    except ImportError as error:
        raise InputError(
            "got no scikit-learn, which logistic regression on embeddings needs, expected it installed; run "
            "pip install 'tangentlora[studies]'."
        ) from error
    return linear_model
