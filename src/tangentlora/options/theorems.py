"""The verbs that put the theorems to the user's own problem: advise, path, examine, landscape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tangentlora.options.shared import (
    add_descent_options,
    add_lam_option,
    add_output_option,
    add_problem_options,
    add_verb,
)

PARTS = ("stationarity", "regime", "bounds", "rate")
"""What `examine` can say of a run, in the order in which it says it."""


def add_advise(verbs: Any) -> None:
    """Add `advise`: which rank do these data need?"""
    parser = add_verb(verbs, "advise", "say which LoRA rank the data need, rule by rule and run by run")
    add_problem_options(parser, held_out=False)
    add_lam_option(parser)
    group = parser.add_argument_group("runs")
    group.add_argument(
        "--ranks",
        nargs="+",
        type=int,
        metavar="RANK",
        default=[1, 2, 4, 8, 16],
        help="those to train (default: 1 2 4 8 16)",
    )
    group.add_argument("--solver", choices=("sgd", "adamw", "lbfgs"), help="of the runs (default: lbfgs)")
    add_descent_options(group)
    parser.add_argument("--strict", action="store_true", help="exit 1 unless a run reached the optimum")


def add_path(verbs: Any) -> None:
    """Add `path`: the certified optimum at every λ, and which λ to take."""
    parser = add_verb(verbs, "path", "certify the optimum at many λ, choose one, and write its run folder")
    add_output_option(parser, "runs/path")
    add_problem_options(parser)
    group = parser.add_argument_group("path", "λ falls from the least one at which δ = 0 is optimal.")
    group.add_argument("--points", type=int, default=50, help="values of λ (default: 50)")
    group.add_argument(
        "--fraction", type=float, default=1e-3, help="the last λ over the first (default: 1e-3)"
    )
    group.add_argument(
        "--folds", type=int, help="of cross-validation, which is for data without a dev set (default: 5)"
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="exit 1 unless every point is certified and the chosen answer holds on the real network",
    )


def add_examine(verbs: Any) -> None:
    """Add `examine`: what the theorems say of a run that is done."""
    parser = add_verb(
        verbs, "examine", "say what the theorems say of a run: saddle or minimum, NTK regime, bounds, rate"
    )
    parser.add_argument("folder", type=Path, help="the run folder")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these parts (default: all)")
    parser.add_argument("--answer", metavar="NAME", help="which of the run's answers (default: the main one)")
    parser.add_argument("--device", help="default: that of the run")
    parser.add_argument(
        "--strict", action="store_true", help="exit 1 unless the answer holds on the real network"
    )


def add_landscape(verbs: Any) -> None:
    """Add `landscape`: Theorem 2 on the user's own problem."""
    parser = add_verb(
        verbs, "landscape", "train from many starts with a random Π and classify where each run rests"
    )
    add_problem_options(parser, held_out=False)
    add_lam_option(parser)
    group = parser.add_argument_group("runs")
    group.add_argument(
        "--ranks", nargs="+", type=int, metavar="RANK", default=[1, 2, 4, 8], help="default: 1 2 4 8"
    )
    group.add_argument("--repeats", type=int, default=2, help="of every random start (default: 2)")
    group.add_argument(
        "--perturbation", dest="size", type=float, help="‖Π‖₂ of the random Π (default: λ/1000)"
    )
    parser.add_argument("--strict", action="store_true", help="exit 1 if a run speaks against the theorem")
