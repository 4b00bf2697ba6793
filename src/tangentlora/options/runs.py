"""The verbs that solve a problem and write a folder of its answers: demo, fit, reproduce."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tangentlora.options.shared import (
    add_data_options,
    add_descent_options,
    add_lam_option,
    add_network_options,
    add_output_option,
    add_problem_options,
    add_readout_options,
    add_rest_options,
    add_verb,
)

_STRICT = "exit 1 unless the answer is certified and holds on the real network"


def add_demo(verbs: Any) -> None:
    """Add `demo`: the bundled messages and MiniLM, at five ranks, in full, and certified."""
    parser = add_verb(verbs, "demo", "compare LoRA ranks with the certified optimum on the bundled data")
    add_output_option(parser, "runs/demo")
    add_problem_options(parser)
    add_lam_option(parser)
    parser.add_argument(
        "--epochs", type=int, default=800, help="most passes over the examples in each run (default: 800)"
    )
    parser.add_argument("--strict", action="store_true", help=_STRICT)


def add_fit(verbs: Any) -> None:
    """Add `fit`: one solver on the user's network and data."""
    parser = add_verb(verbs, "fit", "fine-tune a linearised network and certify the answer")
    add_output_option(parser, "runs/fit")
    add_problem_options(parser)
    add_lam_option(parser)
    group = parser.add_argument_group("solver")
    group.add_argument(
        "--solver",
        choices=("sgd", "adamw", "lbfgs", "proximal", "certified"),
        help="LoRA by sgd, adamw or lbfgs, full fine-tuning by proximal, or certified, the optimum (default)",
    )
    group.add_argument(
        "--rank",
        type=int,
        help="LoRA rank r, with sgd, adamw or lbfgs (default: 8); the other solvers find theirs",
    )
    group.add_argument("--lora-alpha", type=float, help="with --weight-decay w: λ = w·r/alpha")
    group.add_argument(
        "--weight-decay", type=float, help="w of the penalty w/2 (‖A‖² + ‖B‖²), instead of --lam"
    )
    add_descent_options(group, full=True)
    group.add_argument(
        "--freeze-a", action="store_true", default=None, help="train B alone; with sgd, adamw or lbfgs"
    )
    group.add_argument(
        "--init-from",
        metavar="ADAPTER",
        help="continue from a PEFT adapter: its layers (so leave out --target-modules and --layers), its "
        "factors, by default its base model and rank",
    )
    group.add_argument(
        "--outer",
        type=int,
        metavar="N",
        help="at most N Gauss–Newton steps on the real network, linearised anew at every answer (default: 0)",
    )
    parser.add_argument("--strict", action="store_true", help=_STRICT)


def add_reproduce(verbs: Any) -> None:
    """Add `reproduce`: a whole study, the paper's or the user's own."""
    parser = add_verb(verbs, "reproduce", "run a study: tasks × seeds × ranks, with certificates and figures")
    parser.add_argument("study", nargs="?", help="sst2, nlp, beans, …, or a YAML file of your own")
    parser.add_argument("--list", action="store_true", help="list the studies and end")
    parser.add_argument(
        "--size", default="full", help="full (default), or another size of the study, such as ci"
    )
    parser.add_argument(
        "--output-dir", type=Path, help="where results go and are found again (default: runs/STUDY)"
    )
    parser.add_argument("--tensorboard", action="store_true", help="write scalars while training")
    group = parser.add_argument_group("grid", "What the study says, unless given here.")
    group.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="of examples and initial factors")
    group.add_argument("--ranks", nargs="+", type=int, metavar="RANK", help="LoRA ranks")
    group.add_argument(
        "--side-ranks", nargs="+", type=int, metavar="RANK", help="of published, frozen-a and perturbed"
    )
    group.add_argument("--lams", nargs="+", type=float, metavar="LAM", help="each λ at which all is run")
    group.add_argument(
        "--dev-lams", nargs="*", type=float, metavar="LAM", help="more λ for the choice by dev set"
    )
    group.add_argument(
        "--variants",
        nargs="+",
        metavar="VARIANT",
        help="certified, lora, full (accelerated), full-plain (proximal steps at the learning rate), "
        "published, frozen-a, perturbed, or the baselines zero-shot, logistic-regression, peft-lora",
    )
    group.add_argument(
        "--real",
        nargs="*",
        metavar="VARIANT",
        help="those of the variants whose real network is evaluated as well",
    )
    group.add_argument("--within", type=float, help="distance to the optimum that counts as arrived")
    add_network_options(parser)
    add_data_options(parser)
    add_readout_options(parser)
    solver = parser.add_argument_group("solver")
    solver.add_argument("--solver", choices=("sgd", "adamw", "lbfgs"), help="of LoRA")
    add_descent_options(solver)
    add_rest_options(parser)
