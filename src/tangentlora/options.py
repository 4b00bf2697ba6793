"""The options of each verb; names are the ecosystem's, defaults are those of `Settings`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangentlora.errors import InputError

if TYPE_CHECKING:
    from tangentlora.studies.settings import Settings


def add_demo(verbs: Any) -> None:
    """Add `demo`: the bundled messages and MiniLM, at five ranks, in full, and certified."""
    parser = _verb(verbs, "demo", "compare LoRA ranks with the certified optimum on the bundled data")
    _output(parser, "runs/demo")
    _problem(parser)
    parser.add_argument(
        "--epochs", type=int, default=800, help="most passes over the examples in each run (default: 800)"
    )


def add_fit(verbs: Any) -> None:
    """Add `fit`: one solver on the user's network and data."""
    parser = _verb(verbs, "fit", "fine-tune a linearised network and certify the answer")
    _output(parser, "runs/fit")
    _problem(parser)
    group = parser.add_argument_group("solver")
    group.add_argument(
        "--solver",
        choices=("sgd", "adamw", "lbfgs", "proximal", "certified"),
        help="LoRA by sgd, adamw or lbfgs, full fine-tuning by proximal, or certified, the optimum (default)",
    )
    group.add_argument("--rank", type=int, help="LoRA rank r (default: 8)")
    group.add_argument("--lora-alpha", type=float, help="with --weight-decay w: λ = w·r/alpha")
    group.add_argument(
        "--weight-decay", type=float, help="w of the penalty w/2 (‖A‖² + ‖B‖²), instead of --lam"
    )
    _descent(group)
    group.add_argument("--freeze-a", action="store_true", default=None, help="train B alone")
    parser.add_argument("--strict", action="store_true", help="exit 1 unless the answer is certified")


def add_verify(verbs: Any) -> None:
    """Add `verify`: check a certificate from the files alone."""
    parser = _verb(
        verbs, "verify", "check a run's certificate anew, with code that shares nothing with the solver"
    )
    parser.add_argument("folder", type=Path, help="the run folder")
    parser.add_argument("--store", type=Path, help="the folder of the tangent, if it has moved")
    parser.add_argument("--strict", action="store_true", help="exit 1 also when the answer is not certified")


def add_advise(verbs: Any) -> None:
    """Add `advise`: which rank do these data need?"""
    parser = _verb(verbs, "advise", "say which LoRA rank the data need, rule by rule and run by run")
    _problem(parser)
    group = parser.add_argument_group("runs")
    group.add_argument(
        "--ranks", nargs="+", type=int, metavar="RANK", help="those to train (default: 1 2 4 8 16)"
    )
    group.add_argument("--solver", choices=("sgd", "adamw", "lbfgs"), help="of the runs (default: lbfgs)")
    _descent(group)
    parser.add_argument("--strict", action="store_true", help="exit 1 unless a run reached the optimum")


def add_reproduce(verbs: Any) -> None:
    """Add `reproduce`: a whole study, the paper's or the user's own."""
    parser = _verb(verbs, "reproduce", "run a study: tasks × seeds × ranks, with certificates and figures")
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
        help="certified, lora, full, published, frozen-a, perturbed, or the baselines zero-shot, "
        "logistic-regression, peft-lora",
    )
    group.add_argument(
        "--real", nargs="*", metavar="VARIANT", help="those whose real network is evaluated as well"
    )
    group.add_argument("--within", type=float, help="distance to the optimum that counts as arrived")
    _network(parser)
    _data(parser)
    _readout(parser)
    solver = parser.add_argument_group("solver")
    solver.add_argument("--solver", choices=("sgd", "adamw", "lbfgs"), help="of LoRA")
    _descent(solver)
    _rest(parser)


def add_report(verbs: Any) -> None:
    """Add `report`: make figures, page and model card of a run folder again."""
    parser = _verb(verbs, "report", "write figures, report.html and README.md of a run folder again")
    parser.add_argument("folder", type=Path, help="the run folder")


def add_doctor(verbs: Any) -> None:
    """Add `doctor`: is everything here that a run needs?"""
    parser = _verb(verbs, "doctor", "check the installation, and solve and verify a small problem")
    parser.add_argument("--device", default="cpu", help="the device to try (default: cpu)")


def settings_of(options: argparse.Namespace) -> Settings:
    """Return the settings that the options name; what is not given keeps the default of `Settings`."""
    from tangentlora.studies.settings import Settings

    given = {key: value for key, value in vars(options).items() if value is not None}
    values = given_for(Settings, options)
    decay, alpha = given.get("weight_decay"), given.get("lora_alpha")
    if decay is not None:
        if "lam" in given:
            raise InputError(
                "got both --lam and --weight-decay, expected one of them, since λ = w·r/alpha: leave one out"
            )
        rank = values.get("rank", Settings.rank)
        scaled = rank if alpha is None else alpha
        if not scaled > 0:
            raise InputError(
                f"got rank {rank} and --lora-alpha {alpha}, expected positive numbers, since "
                "λ = w·r/alpha: change them"
            )
        values["lam"] = decay * rank / scaled
    elif alpha is not None:
        raise InputError(
            "got --lora-alpha without --weight-decay, expected both, since the scaling only turns a "
            "weight decay into λ: leave it out or add the other"
        )
    return Settings(**values)


def given_for(kind: type, options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that were given and are fields of a dataclass, lists as tuples."""
    from dataclasses import fields

    known = {field.name for field in fields(kind)}
    return {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in vars(options).items()
        if value is not None and key in known
    }


def _learning_rate(text: str) -> float | str:
    try:
        return text if text == "auto" else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number or auto") from error


def _verb(verbs: Any, name: str, sentence: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=sentence, description=sentence[0].upper() + sentence[1:] + "."
    )
    parser.add_argument("--json", action="store_true", help="print exactly one JSON object on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress bars on stderr")
    return parser


def _output(parser: argparse.ArgumentParser, folder: str) -> None:
    parser.add_argument(
        "--output-dir", type=Path, default=Path(folder), help=f"the run folder (default: {folder})"
    )


def _problem(parser: argparse.ArgumentParser) -> None:
    _network(parser)
    _data(parser).add_argument(
        "--data-seed", type=int, help="of the draw, and of the k-shot folder (default: 13)"
    )
    _readout(parser)
    parser.add_argument("--lam", type=float, help="λ of the nuclear norm (default: 0.1)")
    parser.add_argument("--seed", type=int, help="of everything random in solvers and heads (default: 0)")
    _rest(parser)


def _descent(group: Any) -> None:
    group.add_argument("--epochs", type=int, help="most passes over the examples (default: 1000)")
    group.add_argument(
        "--learning-rate",
        type=_learning_rate,
        help="of the mean loss (default: auto, chosen from the curvature and halved as needed)",
    )
    group.add_argument("--momentum", type=float, help="of sgd (default: 0.9; the paper's is 0)")
    group.add_argument("--minibatch-size", type=int, help="examples per step, in order (default: all)")
    group.add_argument("--perturbation", type=float, help="‖Π‖₂ of the random perturbation (default: 0)")


def _network(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("network")
    model.add_argument("--model", help="hub id, folder, or minilm: the packaged weights (default: minilm)")
    model.add_argument("--revision", help="branch, tag or commit of a hub id")
    model.add_argument("--dtype", help="of the network: float32 (default), float64 or bfloat16")
    model.add_argument("--device", help="cpu (default), cuda, cuda:1, …")
    model.add_argument(
        "--target-modules", nargs="+", metavar="NAME", help="roles or names (default: query value)"
    )
    model.add_argument("--layers", help="last (default), all, or indices such as 0,5")
    model.add_argument("--batch-size", type=int, help="examples per forward pass (default: 32)")


def _data(parser: argparse.ArgumentParser) -> Any:
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data", help="support (bundled, default), a file, a folder (k-shot, images, sounds) or a hub id"
    )
    data.add_argument("--task", help="sst2, mr, cr, subj, qnli, qqp, … (default: told by the data)")
    data.add_argument("--text-column", help="where the data has unusual names")
    data.add_argument("--label-column", help="where the data has unusual names")
    data.add_argument(
        "--label-pattern", help="regular expression whose first group is the label in a file's name"
    )
    data.add_argument(
        "--shots", type=int, help="training examples per label to draw, and as many for the dev set"
    )
    data.add_argument("--test-limit", type=int, help="most held-out examples (default: 1000)")
    return data


def _readout(parser: argparse.ArgumentParser) -> None:
    readout = parser.add_argument_group("readout")
    readout.add_argument("--readout", choices=("auto", "prompt", "prototypes", "head"), help="default: auto")
    readout.add_argument(
        "--template",
        help="of the prompt: '{text} It was {mask}.', or '{text}? {mask}, {text2:lower_first}' for a pair",
    )
    readout.add_argument("--label-words", nargs="+", metavar="WORD", help="one per label, for the prompt")
    readout.add_argument(
        "--prototypes", nargs="+", metavar="SENTENCE", help="one per label, for a sentence encoder"
    )
    readout.add_argument(
        "--head-init", choices=("probe", "checkpoint", "random"), help="of a head (default: probe)"
    )
    readout.add_argument("--max-length", type=int, help="tokens per text (default: 128)")


def _rest(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tolerance", type=float, help="gap ≤ tolerance·max(1, P) is certified (default: 1e-6)"
    )
    parser.add_argument("--tangent-dir", type=Path, help="where tangents are kept between runs")
