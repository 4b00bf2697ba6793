"""A certified λ path as it is kept in a run folder's path.json: its points and the λ that it chooses."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tangentlora.report.columns import aligned
from tangentlora.report.folder import RunFolder
from tangentlora.report.parsing import parse_mapping, parse_number, parse_object, parsed, read_text
from tangentlora.report.record import Run
from tangentlora.report.wording import ABSENT, accuracy, number, plain, relative

FORMAT = 1
"""The version of path.json that this code writes and reads."""


@dataclass(frozen=True)
class PathPoint:
    """The certified answer at one λ; `scores` are of the linearised network, named as in `scores`.

    `products` counts passes over the Jacobian. Scores that begin with `cv_` are of held-out folds.
    """

    lam: float
    objective: float
    gap: float
    relative_gap: float
    certified: bool
    ranks: dict[str, int]
    products: int
    scores: dict[str, float]

    @classmethod
    def parse(cls, row: object) -> PathPoint:
        values = parse_object(row)
        return cls(
            lam=_finite(values["lam"]),
            objective=_finite(values["objective"]),
            gap=_finite(values["gap"]),
            relative_gap=_finite(values["relative_gap"]),
            certified=values["certified"] is True,
            ranks=parse_mapping(values["ranks"], int),
            products=int(values["products"]),
            scores=parse_mapping(values["scores"], _score),
        )


@dataclass(frozen=True)
class LambdaPath:
    """The points of a path, largest λ first, and the λ that `rule` chooses among the certified ones."""

    points: tuple[PathPoint, ...]
    chosen: float
    rule: str

    @property
    def best(self) -> PathPoint:
        """The point at the chosen λ."""
        return next(point for point in self.points if point.lam == self.chosen)

    @property
    def certified(self) -> bool:
        """Whether every point is certified."""
        return all(point.certified for point in self.points)

    def table(self) -> str:
        """Return aligned columns, one line per λ and a star at the chosen one, and the rule below."""
        shown = [key for key in self.points[0].scores if key.endswith("_accuracy")]
        head = ("", "λ", "objective", "relative gap", "certified", "rank", *(k.split("_")[0] for k in shown))
        lines = aligned([head, *(self._row(point, shown) for point in self.points)])
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "", f"* chosen: {self.rule}."])

    def _row(self, point: PathPoint, shown: Sequence[str]) -> tuple[str, ...]:
        return (
            "*" if point.lam == self.chosen else "",
            plain(float(f"{point.lam:.4g}")),
            number(point.objective),
            relative(point.relative_gap),
            "yes" if point.certified else "no",
            "+".join(map(str, point.ranks.values())) or ABSENT,
            *(accuracy(point.scores.get(key)) for key in shown),
        )

    def describe(self) -> dict[str, Any]:
        """Return everything as JSON can hold it, but for numbers that are not finite."""
        return {
            "chosen": self.chosen,
            "rule": self.rule,
            "certified": self.certified,
            "points": [asdict(point) for point in self.points],
        }

    @classmethod
    def parse(cls, content: object) -> LambdaPath:
        """Read what `describe` gave; raises KeyError, TypeError or ValueError where it is not a path."""
        values = parse_object(content)
        points = tuple(PathPoint.parse(row) for row in values["points"])
        chosen = _finite(values["chosen"])
        if chosen not in [point.lam for point in points]:
            raise ValueError(f"the chosen λ = {chosen} is none of its points")
        return cls(points, chosen, str(values["rule"]))


def read_path(folder: RunFolder, run: Run) -> LambdaPath | None:
    """Return the path that chose the run's λ, None where the folder has none or another problem's.

    A later `fit` into the same folder leaves path.json behind, so tangent and λ are compared.
    Raises InputError where path.json is damaged.
    """
    path = folder.path / "path.json"
    if not path.exists():
        return None
    writer = "tangentlora path wrote it; run path again"
    content = parsed(path, json.loads, read_text(folder.path, path.name, "a file that can be read"), writer)
    values = parsed(path, parse_object, content, writer)
    if values.get("format") != FORMAT or values.get("tangent") != run.tangent.get("key"):
        return None
    found = parsed(path, LambdaPath.parse, values, writer)
    return found if found.chosen == run.configuration["lam"] else None


def _finite(value: object) -> float:
    number = parse_number(value)
    if number is None:
        raise ValueError(f"{value!r} is no finite number")
    return number


def _score(value: object) -> float:
    """Return a score; JSON has no word for one that is not finite, so null stands for it."""
    number = parse_number(value)
    return math.nan if number is None else number
