"""Everything that `fit` and `demo` can be told, with defaults that work."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from tangentlora.errors import InputError
from tangentlora.solvers.certified import Certified
from tangentlora.solvers.descent import Descent
from tangentlora.solvers.proximal import Proximal
from tangentlora.solvers.solution import Solver

SolverName = Literal["sgd", "adamw", "lbfgs", "proximal", "certified"]
ReadoutName = Literal["auto", "prompt", "prototypes", "head"]


def default_tangent_dir() -> Path:
    """Return where tangents are kept: `$XDG_CACHE_HOME/tangentlora`, else `~/.cache/tangentlora`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tangentlora"


@dataclass(frozen=True)
class Settings:
    """One fine-tuning problem and how it is solved; the names are those of the command line's options.

    Raises InputError for sizes below 1, a tolerance that is not positive and a λ that is not at least 0.
    """

    model: str = "minilm"
    revision: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    data: str = "support"
    task: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    shots: int | None = None
    data_seed: int = 13
    test_limit: int = 1000
    readout: ReadoutName = "auto"
    template: str | None = None
    label_words: tuple[str, ...] = ()
    prototypes: tuple[str, ...] = ()
    head_init: Literal["probe", "checkpoint", "random"] = "probe"
    max_length: int = 128
    target_modules: tuple[str, ...] = ("query", "value")
    layers: str = "last"
    batch_size: int = 32
    tangent_dir: Path = field(default_factory=default_tangent_dir)
    lam: float = 0.1
    solver: SolverName = "certified"
    rank: int = 8
    epochs: int = 1000
    learning_rate: float | None = None
    momentum: float = 0.9
    minibatch_size: int | None = None
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
        if not 0 < self.tolerance < math.inf:
            raise InputError(
                f"got tolerance {self.tolerance}, expected a positive number such as 1e-6: change --tolerance"
            )
        if not 0 <= self.lam < math.inf:
            raise InputError(
                f"got λ = {self.lam}, expected a number of at least 0: give --lam a positive value such "
                "as 0.01"
            )


@dataclass(frozen=True)
class Trial:
    """One solver to run on the problem; `folder` is where its answer goes, below the run folder."""

    name: str
    folder: str
    solver_name: SolverName
    rank: int | None
    solver: Solver


def trial(settings: Settings, folder: str = ".") -> Trial:
    """Return the trial that the settings ask for; raises InputError for the certified solver at λ = 0."""
    kind = settings.solver
    if kind == "certified":
        if settings.lam == 0:
            raise InputError(
                "got λ = 0 for the certified solver, expected λ > 0: at 0 a minimiser need not exist, so "
                "give --lam a positive value or use --solver sgd"
            )
        return Trial("certified", folder, kind, None, Certified(tolerance=settings.tolerance))
    if kind == "proximal":
        solver = Proximal(epochs=settings.epochs, tolerance=settings.tolerance, seed=settings.seed)
        return Trial("full fine-tuning", folder, kind, None, solver)
    descent = Descent(
        rank=settings.rank,
        method=kind,
        epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        momentum=settings.momentum,
        batch_size=settings.minibatch_size,
        freeze_a=settings.freeze_a,
        perturbation=settings.perturbation,
        seed=settings.seed,
        tolerance=settings.tolerance,
    )
    return Trial(f"LoRA r={settings.rank}", folder, kind, settings.rank, descent)


def comparison(settings: Settings, ranks: tuple[int, ...]) -> list[Trial]:
    """Return LoRA at each rank, full fine-tuning and the certified optimum, which is the main answer."""
    trials = [trial(replace(settings, solver="sgd", rank=r), f"lora-r{r}") for r in ranks]
    trials.append(trial(replace(settings, solver="proximal"), "full"))
    trials.append(trial(replace(settings, solver="certified")))
    return trials
