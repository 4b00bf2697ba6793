"""What a compression of an adapter reached: measurements on the real network, and what they say."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tangentlora.blocks import Factors
from tangentlora.models.lengths import Cut
from tangentlora.report.columns import WIDTH, named
from tangentlora.report.standing import describe_standing, failure
from tangentlora.report.wording import accuracy, relative
from tangentlora.theory.output_reduction import theorem_count
from tangentlora.theory.standing import SetStanding, Standing

_ROUNDING = 1e-6
"""Of a loss: less is no rise."""


@dataclass(frozen=True)
class Measured:
    """The real network on one set, against the given adapter: Δ is the change of the centred outputs.

    `largest_change` = max |Δ_ik|, in the units of the outputs. `relative_change` = ‖Δ‖_F over that of taking
    the given adapter off: 0 changes nothing and 1 as much as that; None where that has no effect. `loss` is
    the mean loss in nats, and `accuracy` None for completions, which have no classes. Their outputs are
    compared as they are. `lost` counts the examples that the given adapter gets right and this one wrong,
    `gained` the others way round.
    """

    accuracy: float | None
    loss: float
    largest_change: float
    relative_change: float | None
    lost: int | None = None
    gained: int | None = None


@dataclass(frozen=True)
class Row:
    """One adapter of the comparison; `parameters` = Σ_t r_t(m_t + n_t), `nuclear_norm` = Σ_t ‖δ_t‖_*."""

    name: str
    ranks: dict[str, int]
    parameters: int
    nuclear_norm: float
    train: Measured
    test: Measured | None


@dataclass(frozen=True, eq=False)
class Compression:
    """A compressed update with the measurements that speak for and against it.

    `rows` in order: no adapter; given; theorem 1, or by outputs, which is what the linearised problem says;
    polished (unless it was not asked for); and two truncations by weight energy, one at the same ranks and
    one over all layers at no more parameters. `factors` are those of the row `chosen`; `cut` says of
    each set what did not fit into the network.
    """

    factors: Factors
    rows: tuple[Row, ...]
    constraints: int
    tolerance: float | None
    sizes: dict[str, int]
    cut: dict[str, Cut] = field(default_factory=dict)

    def row(self, name: str) -> Row:
        """Return a row by its name."""
        return next(row for row in self.rows if row.name == name)

    @property
    def chosen(self) -> Row:
        """The row of `factors`."""
        return self.rows[-3]

    @property
    def standing(self) -> Standing:
        """How the answer stands against the given adapter, or that one against none where it fails already.

        Against the given adapter up to half of what it takes off the loss may be lost.
        """
        none, given, now = self.row("no adapter"), self.row("given"), self.chosen
        gain = none.train.loss - given.train.loss
        parts = ("train", "test")
        already = Standing(
            {
                part: _given(getattr(none, part), getattr(given, part), self.sizes[part])
                for part in parts
                if part in self.sizes
            },
            slack=_ROUNDING * max(1.0, none.train.loss),
        )
        if not already.holds:
            return already
        return Standing(
            {
                part: _smaller(getattr(given, part), getattr(now, part), self.sizes[part])
                for part in parts
                if part in self.sizes
            },
            slack=abs(gain) / 2 + _ROUNDING * max(1.0, given.train.loss),
        )

    @property
    def headline(self) -> str:
        """What comes first: that an adapter fails on the real network, or else what was reached."""
        found = self.standing
        if found.holds:
            return self.message
        if found.train.error is None:
            return failure(found, "The given adapter", "Compressing it keeps that: train it anew.")
        remedy = "Allow a higher rank or less change of the outputs, and let it polish."
        return failure(found, "Against the given adapter, the smaller one", remedy)

    @property
    def theorem_count(self) -> int:
        """Σ_t r_t(r_t+1)/2 of the answer, which Theorem 1 can always bring down to `constraints`."""
        return theorem_count(self.factors)

    @property
    def message(self) -> str:
        """What was reached, on the data and on held-out examples, beside truncation at the same size."""
        given, now, peers = self.row("given"), self.chosen, self.rows[-2:]
        asked = "" if self.tolerance is None else f" (tolerance {self.tolerance:.1e}: met)"
        text = (
            f"{now.parameters} of {given.parameters} parameters; Σ r(r+1)/2 = {self.theorem_count}, c = "
            f"{self.constraints}. On the {self.sizes['train']} examples given no output changes by more than "
            f"{now.train.largest_change:.1e}{asked}; truncation by weight energy at this size: "
            f"{min(row.train.largest_change for row in peers):.1e} at best."
        )
        if now.test is None:
            return f"{text} Nothing was held out, so what other inputs will see was not measured."
        best = min(row.test.largest_change for row in peers if row.test is not None)
        share = now.test.relative_change
        weighed = "" if share is None else f", {_percent(share)} of the adapter's effect in root mean square"
        text += (
            f" On {self.sizes['test']} examples held out of this compression: "
            f"{now.test.largest_change:.1e}{weighed}; by truncation {best:.1e} at best."
        )
        if now.test.largest_change <= best:
            return text
        return (
            f"{text} There truncation is better: compress on inputs that the adapter was not trained on, or "
            "do not polish."
        )

    def table(self) -> str:
        """Return the headline, the rows as aligned columns, at most 100 wide, and notes below them."""
        parts = [part for part in ("train", "test") if part in self.sizes]
        head = ["adapter", "ranks", "size"]
        over, cells = [""] * len(head), [head]
        for part in parts:
            over += [f"{part} ({self.sizes[part]})", "", "", ""]
            cells[0] = [*cells[0], "loss", "acc.", "max |Δ|", "rms Δ"]
        for row in self.rows:
            line = [row.name, str(sum(row.ranks.values())), str(row.parameters)]
            for measured in (row.train, row.test):
                line += [] if measured is None else _cells(measured)
            cells.append(line)
        widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        lines = [named(line, widths) for line in cells]
        above = _spanning(over, widths)
        rule = "-" * max(map(len, lines))
        note = (
            "ranks: Σ r over the layers; size: the numbers that the adapter holds. max |Δ| and rms Δ: the "
            "largest change of an output against the given adapter, and the root mean square over that of "
            "taking it off."
        )
        below = [note] if self.standing.holds else [note, self.message]
        below += [f"{found.sentence(part)}." for part, found in self.cut.items() if found.cut]
        text = [textwrap.fill(sentence, WIDTH) for sentence in below]
        first = textwrap.fill(self.headline, WIDTH)
        return "\n".join([first, "", above, lines[0], rule, *lines[1:], "", *text])

    def record(self) -> dict[str, Any]:
        """Return everything but the factors as JSON has it."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "constraints": self.constraints,
            "theorem_count": self.theorem_count,
            "tolerance": self.tolerance,
            "examples": self.sizes,
            "cut": {part: found.describe() for part, found in self.cut.items()},
            "message": self.message,
            "headline": self.headline,
            "real_network": describe_standing(self.standing),
        }


def _given(none: Measured, given: Measured, n: int) -> SetStanding:
    """Return the given adapter against none; a row's pairs are those against the given adapter."""
    before, after = (none.loss, none.accuracy), (given.loss, given.accuracy)
    return SetStanding(
        n, before[0], None, after[0], before[1], None, after[1], lost=none.gained, gained=none.lost
    )


def _smaller(given: Measured, now: Measured, n: int) -> SetStanding:
    """Return the smaller adapter against the given one, whose outputs it is to keep."""
    return SetStanding(
        n,
        given.loss,
        given.loss,
        now.loss,
        given.accuracy,
        given.accuracy,
        now.accuracy,
        lost=now.lost,
        gained=now.gained,
        error=now.relative_change or 0.0,
    )


def _cells(measured: Measured) -> list[str]:
    share = measured.relative_change
    return [
        f"{measured.loss:.4f}" if measured.loss >= 1e-3 else relative(measured.loss),
        accuracy(measured.accuracy),
        relative(measured.largest_change),
        "–" if share is None else _percent(share),
    ]


def _percent(share: float) -> str:
    return "<0.01%" if 0 < share < 1e-4 else f"{100 * share:.3g}%"


def _spanning(over: Sequence[str], widths: Sequence[int]) -> str:
    """Return the names of the sets, each at the left of its four columns."""
    text = ""
    for i, name in enumerate(over):
        if name:
            text = text.ljust(sum(widths[:i]) + 2 * i) + name
    return text
