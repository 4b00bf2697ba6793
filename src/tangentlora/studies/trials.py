"""Settings → the solvers to run on one problem."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tangentlora.solvers.certified import Certified
from tangentlora.solvers.descent import Descent
from tangentlora.solvers.proximal import Proximal
from tangentlora.solvers.solution import Solver
from tangentlora.studies.settings import Settings, SolverName


@dataclass(frozen=True)
class Trial:
    """One solver to run on the problem; `folder` is where its answer goes, below the run folder."""

    name: str
    folder: str
    solver_name: SolverName
    rank: int | None
    solver: Solver


def trial(settings: Settings, folder: str = ".") -> Trial:
    """Return the trial that the settings ask for."""
    kind = settings.solver
    if kind == "certified":
        return Trial("certified", folder, kind, None, Certified(tolerance=settings.tolerance))
    if kind == "proximal":
        solver = Proximal(epochs=settings.epochs, tolerance=settings.tolerance, seed=settings.seed)
        return Trial("full fine-tuning", folder, kind, None, solver)
    descent = Descent(
        rank=settings.rank,
        method=kind,
        epochs=settings.epochs,
        learning_rate=None if settings.learning_rate == "auto" else settings.learning_rate,
        momentum=settings.momentum,
        batch_size=settings.minibatch_size,
        initialisation=settings.initialisation,
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
