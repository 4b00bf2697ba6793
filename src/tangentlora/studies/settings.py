"""Everything that `fit` and `demo` can be told, with defaults that work; read without importing torch."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from tangentlora.errors import InputError

SolverName = Literal["sgd", "adamw", "lbfgs", "proximal", "certified"]
Initialisation = Literal["paper", "spectral"]
ReadoutName = Literal["auto", "prompt", "prototypes", "head"]


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
    network; 0 solves the network linearised at W once.

    Raises InputError for sizes and memory below 1, a test fraction outside [0, 1) or beside test data, a
    tolerance that is not positive, an unknown initialisation or one beside `init_from`, a λ that is not at
    least 0, λ = 0 for the certified solver, and `outer` below 0 or with a solver that trains factors.
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
    head_init: Literal["probe", "checkpoint", "random"] = "probe"
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
    momentum: float = 0.9
    minibatch_size: int | None = None
    initialisation: Initialisation = "paper"
    init_from: str | None = None
    outer: int = 0
    freeze_a: bool = False
    perturbation: float = 0.0
    seed: int = 0
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
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
        if not 0 < self.tolerance < math.inf:
            raise InputError(
                f"got tolerance {self.tolerance}, expected a positive number such as 1e-6: change --tolerance"
            )
        if self.initialisation not in get_args(Initialisation):
            raise InputError(
                f"got the initialisation {self.initialisation!r}, expected one of "
                f"{', '.join(get_args(Initialisation))}: change --initialisation"
            )
        if self.init_from is not None and self.initialisation != "paper":
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
