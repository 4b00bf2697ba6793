"""Settings → the solvers to run on one problem."""

from __future__ import annotations

from dataclasses import dataclass

from tangentlora.belongs import LORA
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
        solver = Proximal(
            epochs=settings.epochs,
            learning_rate=None if settings.learning_rate == "auto" else settings.learning_rate,
            momentum=settings.momentum,
            tolerance=settings.tolerance,
            seed=settings.seed,
        )
        return Trial("full fine-tuning", folder, kind, None, solver)
    descent = Descent(
        rank=settings.rank,
        method=kind,
        epochs=settings.epochs,
        learning_rate=None if settings.learning_rate == "auto" else settings.learning_rate,
        momentum=Descent.momentum if settings.momentum is None else settings.momentum,
        batch_size=settings.minibatch_size,
        initialisation=settings.initialisation,
        init_scale=settings.init_scale,
        freeze_a=settings.freeze_a,
        perturbation=settings.perturbation,
        seed=settings.seed,
        tolerance=settings.tolerance,
    )
    return Trial(f"LoRA r={settings.rank}", folder, kind, settings.rank, descent)


def comparison(settings: Settings, ranks: tuple[int, ...]) -> list[Trial]:
    """Return LoRA at each rank, full fine-tuning and the certified optimum, which is the main answer.

    LoRA is trained by the settings' solver if that trains factors, else by sgd.
    """
    method = settings.solver if settings.solver in LORA else "sgd"
    trials = [trial(settings.solved_by(method, rank=r), f"lora-r{r}") for r in ranks]
    # full fine-tuning is accelerated, with steps of its own: a rate of factors says nothing of whole matrices
    accelerated = settings.solved_by("proximal", learning_rate="auto", momentum=None)
    trials.append(trial(accelerated, "full"))
    trials.append(trial(settings.solved_by("certified")))
    return trials
