"""Everything that `fit` and `demo` can be told, with defaults that work; read without importing torch."""

from __future__ import annotations

import math
import os
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from tangentlora.belongs import refuse_unused, used_only
from tangentlora.errors import InputError

SolverName = Literal["sgd", "adamw", "lbfgs", "proximal", "certified"]
Initialisation = Literal["paper", "spectral", "peft"]
ReadoutName = Literal["auto", "prompt", "prototypes", "head"]
HeadInit = Literal["probe", "checkpoint", "random"]
Dtype = Literal["float32", "float64", "bfloat16"]


def default_tangent_dir() -> Path:
    """Return where tangents are kept: `$XDG_CACHE_HOME/tangentlora`, else `~/.cache/tangentlora`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tangentlora"


@dataclass(frozen=True)
class Settings:
    """One fine-tuning problem and how it is solved; the names are those of the command line's options.

    All of `data` is for training unless it has test and dev parts, or `test_data`, `dev_data` or
    `test_fraction` say otherwise. `max_length` is in tokens of a text, None all that the network and its
    tokenizer take. `memory` is what a run may take in bytes, None all that is available when it begins.
    `learning_rate` belongs to the mean loss; `auto` chooses one from the curvature. `init_from` is an adapter
    to continue from, whose layers then are the targets. `outer` is the most Gauss–Newton steps on the real
    network; 0 solves the network linearised at W once. `init_scale` multiplies what is drawn of A. `momentum`
    None is 0.9 for sgd; for proximal it is the growing one of FISTA, where a number keeps it constant and 0
    is plain proximal gradient.

    Raises InputError for values out of range, unknown names, λ = 0 for the certified solver, and for a
    setting other than its default that has no say with the solver, the readout or the start: `BELONGS` says
    which has.
    """

    model: str = "minilm"
    revision: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    data: str = "support"
    task: str | None = None
    text_column: str | tuple[str, ...] | None = None
    label_column: str | None = None
    label_pattern: str | None = None
    shots: int | None = None
    data_seed: int = 13
    test_limit: int = 1000
    test_data: str | None = None
    dev_data: str | None = None
    test_fraction: float = 0.0
    readout: ReadoutName = "auto"
    template: str | None = None
    label_words: tuple[str, ...] = ()
    prototypes: tuple[str, ...] = ()
    head_init: HeadInit = "probe"
    max_length: int | None = None
    target_modules: tuple[str, ...] = ("query", "value")
    layers: str = "last"
    batch_size: int = 32
    tangent_dir: Path = field(default_factory=default_tangent_dir)
    memory: int | None = None
    lam: float = 0.1
    solver: SolverName = "certified"
    rank: int = 8
    epochs: int = 1000
    learning_rate: float | Literal["auto"] = "auto"
    momentum: float | None = None
    minibatch_size: int | None = None
    initialisation: Initialisation = "paper"
    init_scale: float = 1.0
    init_from: str | None = None
    outer: int = 0
    freeze_a: bool = False
    perturbation: float = 0.0
    seed: int = 0
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        for name, known in _NAMES.items():
            if (value := getattr(self, name)) not in known:
                raise InputError(
                    f"got the {name.replace('_', ' ')} {value!r}, expected one of {', '.join(known)}: change "
                    f"--{name.replace('_', '-')}"
                )
        if self.batch_size < 1 or self.test_limit < 1:
            raise InputError(
                f"got batch size {self.batch_size} and test limit {self.test_limit}, expected at least 1 for "
                "both: change --batch-size or --test-limit"
            )
        if not 0 <= self.test_fraction < 1 or (self.test_fraction and self.test_data is not None):
            raise InputError(
                f"got the test fraction {self.test_fraction} and the test data {self.test_data}, expected a "
                "fraction of at least 0 and below 1, or test data, not both: leave one out"
            )
        if self.memory is not None and self.memory < 1:
            raise InputError(
                f"got {self.memory} bytes of memory, expected at least 1: give --memory a size such as 4GB"
            )
        for name in ("shots", "max_length", "rank", "epochs", "minibatch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                words = name.replace("_", " ")
                raise InputError(
                    f"got {words} {value}, expected at least 1: change --{name.replace('_', '-')}"
                )
        if not 0 < self.tolerance < math.inf:
            raise InputError(
                f"got tolerance {self.tolerance}, expected a positive number such as 1e-6: change --tolerance"
            )
        self._require_descent()
        if self.init_from is not None and self.initialisation == "spectral":
            raise InputError(
                f"got the initialisation {self.initialisation!r} and an adapter to continue from, expected "
                "one of them: leave out --initialisation or --init-from"
            )
        if self.outer < 0 or (self.outer and self.solver not in ("certified", "proximal")):
            raise InputError(
                f"got {self.outer} outer steps with the solver {self.solver}, expected at least 1 with "
                "certified or proximal, which solve the problem of each step to its optimum: change --outer "
                "or --solver"
            )
        if not 0 <= self.lam < math.inf:
            raise InputError(
                f"got λ = {self.lam}, expected a number of at least 0: give --lam a positive value such "
                "as 0.01"
            )
        if self.solver == "certified" and self.lam == 0:
            raise InputError(
                "got λ = 0 for the certified solver, expected λ > 0: at 0 a minimiser need not exist, so "
                "give --lam a positive value or use --solver sgd"
            )
        refuse_unused(self.given, self.chosen)

    def _require_descent(self) -> None:
        rate, momentum = self.learning_rate, self.momentum
        if rate != "auto" and not (isinstance(rate, int | float) and 0 < rate < math.inf):
            raise InputError(
                f"got learning rate {rate}, expected auto or a positive number: change --learning-rate"
            )
        if momentum is not None and not 0 <= momentum < 1:
            raise InputError(f"got momentum {momentum}, expected a number in [0, 1): change --momentum")
        if not 0 < self.init_scale < math.inf:
            raise InputError(
                f"got an initial scale of {self.init_scale}, expected a positive number: change --init-scale"
            )
        if not 0 <= self.perturbation < math.inf:
            raise InputError(
                f"got perturbation {self.perturbation}, expected a finite number of at least 0: change "
                "--perturbation"
            )

    @property
    def given(self) -> tuple[str, ...]:
        """The names of the settings whose value is not the default."""
        return tuple(
            f.name for f in fields(self) if f.default is not MISSING and getattr(self, f.name) != f.default
        )

    @property
    def chosen(self) -> dict[str, str]:
        """The choices, as `BELONGS` calls them, that are known from the settings alone."""
        start = "the pretrained weights" if self.init_from is None else "an adapter to continue from"
        known = {"solver": self.solver, "start": start}
        return known if self.readout == "auto" else known | {"readout": self.readout}

    def solved_by(self, solver: SolverName, **changes: Any) -> Settings:
        """Return the settings with another solver, and without those that have no say with it."""
        values = {name: getattr(self, name) for name in self.given} | {"solver": solver} | changes
        kept = used_only(values, {"solver": solver})
        return replace(Settings(**kept), tangent_dir=changes.get("tangent_dir", self.tangent_dir))


_NAMES: dict[str, tuple[str, ...]] = {
    "dtype": get_args(Dtype),
    "readout": get_args(ReadoutName),
    "head_init": get_args(HeadInit),
    "solver": get_args(SolverName),
    "initialisation": get_args(Initialisation),
}
"""The settings that are one of a few names."""
