"""Random problems over the regimes in which a certificate could go wrong; each is drawn from one seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from extended import Layer, Raw, evaluate

Draw = np.random.Generator
LOSSES = ("cross_entropy", "logistic", "squared")


def problem(regime: str, seed: int) -> Raw:
    """Return the problem of a regime and a seed; the same two give the same bytes."""
    draw = np.random.default_rng([seed, *regime.encode()])
    return REGIMES[regime](draw)


def plain(
    draw: Draw,
    *,
    loss: str | None = None,
    n: int | None = None,
    k: int | None = None,
    shapes: list[tuple[int, int]] | None = None,
) -> Raw:
    """Return a problem of ordinary scale: 1–3 layers of sides 2–8, 1–3 rows per example and layer."""
    loss = loss or str(draw.choice(LOSSES))
    n = n or int(draw.integers(2, 11))
    k = 1 if loss == "logistic" else k or int(draw.integers(2, 6))
    shapes = shapes or [(int(m), int(w)) for m, w in draw.integers(2, 9, (draw.integers(1, 4), 2))]
    layers = {}
    for t, (m, width) in enumerate(shapes):
        counts = draw.integers(1, 4, n)
        rows = int(counts.sum())
        layers[f"layer.{t}"] = Layer(
            draw.standard_normal((rows, width)), draw.standard_normal((rows, k, m)) / m**0.5, counts
        )
    f0 = draw.standard_normal((n, k))
    return at_share(Raw(layers, f0, _labels(draw, loss, n, k), loss, 1.0), 10 ** draw.uniform(-3, 0.1))


def at_share(raw: Raw, share: float) -> Raw:
    """Return the problem with λ as a share of the least λ at which δ = 0 is optimal."""
    zero = {
        name: (np.zeros((x.g.shape[2], 0)), np.zeros((x.x.shape[1], 0))) for name, x in raw.layers.items()
    }
    largest = float(max(evaluate(raw, zero).norms.values()))
    return replace(raw, lam=share * largest or share)


def _labels(draw: Draw, loss: str, n: int, k: int) -> NDArray[np.float64] | NDArray[np.int64]:
    if loss == "squared":
        return draw.standard_normal((n, k))
    return 2 * draw.integers(0, 2, n) - 1 if loss == "logistic" else draw.integers(0, k, n)


def _with_layers(raw: Raw, change: Callable[[int, Layer], Layer]) -> Raw:
    return replace(raw, layers={name: change(t, x) for t, (name, x) in enumerate(raw.layers.items())})


def _scaled(raw: Raw, power: float, share: float) -> Raw:
    """Return the problem with its Jacobian times 10^power, half of it in x and half in g."""
    half = 10 ** (power / 2)
    return at_share(_with_layers(raw, lambda _, x: replace(x, x=x.x * half, g=x.g * half)), share)


def _share(draw: Draw) -> float:
    return float(10 ** draw.uniform(-3, 0.1))


def _layers_apart(draw: Draw) -> Raw:
    raw = plain(draw, shapes=[(5, 4), (4, 6), (3, 3)])
    powers = draw.uniform(-9, 9, 3)
    return at_share(_with_layers(raw, lambda t, x: replace(x, x=x.x * 10 ** powers[t])), _share(draw))


def _examples_apart(draw: Draw) -> Raw:
    raw = plain(draw)
    powers = draw.uniform(-6, 6, len(raw.f0))

    def scale(_: int, x: Layer) -> Layer:
        return replace(x, x=x.x * np.repeat(10**powers, x.counts)[:, None])

    return at_share(_with_layers(raw, scale), _share(draw))


def _own_examples(draw: Draw) -> Raw:
    """Two layers that see different examples, one of them scaled by a large factor."""
    raw = plain(draw, n=8, shapes=[(5, 4), (4, 5)])
    power = draw.uniform(2, 9)

    def keep(t: int, x: Layer) -> Layer:
        seen = np.repeat(np.arange(8) % 2 == t, x.counts)
        return Layer(x.x[seen] * 10 ** (power * t), x.g[seen], np.where(np.arange(8) % 2 == t, x.counts, 0))

    return at_share(_with_layers(raw, keep), _share(draw))


def _common(draw: Draw) -> Raw:
    """Gradients with a large part that all outputs share, which softmax ignores."""
    raw = plain(draw, loss="cross_entropy")
    size = 10 ** draw.uniform(2, 7)

    def add(_: int, x: Layer) -> Layer:
        return replace(x, g=x.g + size * draw.standard_normal((len(x.x), 1, x.g.shape[2])))

    return at_share(_with_layers(raw, add), _share(draw))


def _duplicates(draw: Draw) -> Raw:
    raw = plain(draw, n=4)
    twice = [0, 1, 2, 3, 0, 1, 0]

    def repeat(_: int, x: Layer) -> Layer:
        ends = np.cumsum(x.counts)
        rows = np.concatenate([np.arange(ends[i] - x.counts[i], ends[i]) for i in twice])
        return Layer(x.x[rows], x.g[rows], x.counts[twice])

    y = raw.y[twice] if draw.random() < 0.5 else _labels(draw, raw.loss, 7, raw.f0.shape[1])
    return at_share(replace(_with_layers(raw, repeat), f0=raw.f0[twice], y=y), _share(draw))


def _zero_layer(draw: Draw) -> Raw:
    raw = plain(draw, shapes=[(4, 5), (3, 3), (2, 6)])
    return at_share(
        _with_layers(raw, lambda t, x: replace(x, x=x.x * (t != 1), g=x.g * (t != 2 or draw.random() < 0.5))),
        _share(draw),
    )


def _no_rows(draw: Draw) -> Raw:
    """Some examples, or all of them, have no rows in a layer."""
    raw = plain(draw)

    def cut(t: int, x: Layer) -> Layer:
        kept = draw.random(len(x.counts)) < (0.5 if t else 0.9)
        kept[0] = kept[0] or t == 0
        rows = np.repeat(kept, x.counts)
        return Layer(x.x[rows], x.g[rows], np.where(kept, x.counts, 0))

    return at_share(_with_layers(raw, cut), _share(draw))


def _single_precision(draw: Draw) -> Raw:
    raw = plain(draw)

    def rounded(_: int, x: Layer) -> Layer:
        return replace(
            x, x=x.x.astype(np.float32).astype(np.float64), g=x.g.astype(np.float32).astype(np.float64)
        )

    return at_share(
        replace(_with_layers(raw, rounded), f0=raw.f0.astype(np.float32).astype(np.float64)), _share(draw)
    )


def _large_outputs(draw: Draw) -> Raw:
    raw = plain(draw)
    return at_share(replace(raw, f0=raw.f0 * 10 ** draw.uniform(1, 6)), _share(draw))


def _large_targets(draw: Draw) -> Raw:
    raw = plain(draw, loss="squared")
    return at_share(replace(raw, y=raw.y * 10 ** draw.uniform(1, 4)), _share(draw))


def _one_label(draw: Draw) -> Raw:
    raw = plain(draw, loss=str(draw.choice(LOSSES[:2])))
    return at_share(replace(raw, y=np.full_like(raw.y, raw.y[0])), _share(draw))


def _wide(draw: Draw) -> Raw:
    """Layers of more than 64 on both sides, whose norms are proved by a factorisation."""
    side = draw.integers(66, 90, 2)
    raw = plain(draw, n=int(draw.integers(4, 16)), shapes=[(int(side[0]), int(side[1]))])
    return _scaled(raw, float(draw.choice([0, draw.uniform(-12, 12)])), _share(draw))


def _extreme(draw: Draw) -> Raw:
    """Jacobians from 1e-300 to 1e150, with layers small and large."""
    shape = (90, 100) if draw.random() < 0.4 else (5, 6)
    raw = plain(draw, n=int(draw.integers(2, 9)), shapes=[shape])
    return _scaled(raw, float(draw.uniform(-300, 150)), float(draw.uniform(0.3, 1.1)))


def _thin(draw: Draw) -> Raw:
    """Every row of a layer is parallel to one: δ has rank one however many examples there are."""
    raw = plain(draw)
    return at_share(
        _with_layers(raw, lambda _, x: replace(x, x=np.outer(draw.standard_normal(len(x.x)), x.x[0]))),
        _share(draw),
    )


def _little_penalty(draw: Draw) -> Raw:
    raw = plain(draw, n=int(draw.integers(1, 4)))
    return at_share(raw, 10 ** draw.uniform(-18, -4))


REGIMES: dict[str, Callable[[Draw], Raw]] = {
    "plain": plain,
    "small": lambda draw: _scaled(plain(draw), draw.uniform(-12, -3), _share(draw)),
    "large": lambda draw: _scaled(plain(draw), draw.uniform(3, 12), _share(draw)),
    "extreme": _extreme,
    "many outputs": lambda draw: plain(
        draw, loss=str(draw.choice(LOSSES[::2])), k=int(draw.integers(10, 51)), n=3
    ),
    "large outputs": _large_outputs,
    "large targets": _large_targets,
    "duplicates": _duplicates,
    "zero layer": _zero_layer,
    "no rows": _no_rows,
    "single precision": _single_precision,
    "little penalty": _little_penalty,
    "layers apart": _layers_apart,
    "examples apart": _examples_apart,
    "own examples": _own_examples,
    "common gradients": _common,
    "one example": lambda draw: plain(draw, n=1),
    "one label": _one_label,
    "near the least λ": lambda draw: at_share(
        plain(draw), 1 + 10 ** draw.uniform(-12, -2) * draw.choice([-1, 1])
    ),
    "wide": _wide,
    "thin": _thin,
}
