"""Options that several verbs share: of the network, the data, the readout, the problem and descent."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any


def add_verb(verbs: Any, name: str, sentence: str) -> argparse.ArgumentParser:
    """Add a verb with the options that every verb has; the sentence is its help."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=sentence, description=sentence[0].upper() + sentence[1:] + "."
    )
    parser.add_argument("--json", action="store_true", help="print exactly one JSON object on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress bars on stderr")
    return parser


def add_output_option(parser: argparse.ArgumentParser, folder: str) -> None:
    """Add where the run folder goes."""
    parser.add_argument(
        "--output-dir", type=Path, default=Path(folder), help=f"the run folder (default: {folder})"
    )


def add_lam_option(parser: argparse.ArgumentParser) -> None:
    """Add λ."""
    parser.add_argument("--lam", type=float, help="λ of the nuclear norm (default: 0.1)")


def add_problem_options(parser: argparse.ArgumentParser, *, held_out: bool = True) -> None:
    """Add everything that states a problem but λ: network, data, readout, seeds, tolerance."""
    add_network_options(parser)
    add_data_options(parser, held_out=held_out).add_argument(
        "--data-seed", type=int, help="of the draw, and of the k-shot folder (default: 13)"
    )
    add_readout_options(parser)
    parser.add_argument("--seed", type=int, help="of everything random in solvers and heads (default: 0)")
    add_rest_options(parser)


def add_descent_options(group: Any, *, full: bool = False) -> None:
    """Add what belongs to LoRA's training, apart from solver and rank; `full`: and to full fine-tuning."""
    group.add_argument(
        "--initialisation",
        choices=("paper", "peft", "spectral"),
        help="of LoRA's factors: B = 0 and A random as in the paper (default) or as in PEFT, or spectral, at "
        "the escape from δ = 0",
    )
    group.add_argument(
        "--init-scale",
        type=float,
        help="times what is drawn of A (default: 1, a standard deviation of 1/(√r·n), in PEFT 1/√(3n))",
    )
    group.add_argument("--epochs", type=int, help="most passes over the examples (default: 1000)")
    group.add_argument(
        "--learning-rate",
        type=_learning_rate,
        help="of the mean loss, kept as it is (default: auto, chosen from the curvature, and "
        "lowered where the objective would rise above its start)",
    )
    also = "; of proximal: 0 is plain proximal gradient (default: FISTA's, which grows)" if full else ""
    group.add_argument("--momentum", type=float, help=f"of sgd (default: 0.9; the paper's is 0){also}")
    group.add_argument(
        "--minibatch-size", type=int, help="examples per step of sgd or adamw, in order (default: all)"
    )
    group.add_argument("--perturbation", type=float, help="‖Π‖₂ of the random perturbation (default: 0)")


def _learning_rate(text: str) -> float | str:
    try:
        return text if text == "auto" else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number or auto") from error


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Add where the network comes from and which of its matrices are adapted."""
    model = parser.add_argument_group("network")
    _add_network(model, "minilm")
    model.add_argument(
        "--target-modules", nargs="+", metavar="NAME", help="roles or names (default: query value)"
    )
    model.add_argument("--layers", help="last (default), all, or indices such as 0,5")


def add_adapter_options(parser: argparse.ArgumentParser, *, held_out: bool = True) -> None:
    """Add the adapter and what opens it, of any origin: its network, its data and its readout."""
    parser.add_argument("adapter", metavar="ADAPTER", help="PEFT LoRA adapter: a folder or a hub id")
    model = parser.add_argument_group("network", "Which matrices are adapted is told by the adapter.")
    _add_network(model, "the adapter's base model")
    add_data_options(parser, "that of the run beside the adapter", held_out=held_out).add_argument(
        "--data-seed", type=int, help="of the draw, and of the k-shot folder (default: 13)"
    )
    add_readout_options(parser)


def _add_network(group: Any, default: str) -> None:
    group.add_argument(
        "--model", help=f"hub id, folder, or minilm: the packaged weights (default: {default})"
    )
    group.add_argument("--revision", help="branch, tag or commit; only of a hub id")
    group.add_argument("--dtype", help="of the network: float32 (default), float64 or bfloat16")
    group.add_argument("--device", help="cpu (default), cuda, cuda:1, …")
    group.add_argument("--batch-size", type=int, help="examples per forward pass (default: 32)")


def add_data_options(
    parser: argparse.ArgumentParser, default: str = "support", *, held_out: bool = True
) -> Any:
    """Add the data and how many of them, `held_out` ones too; return the group."""
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        help="support, which is bundled, a file, a folder (k-shot, images, sounds) or a hub id "
        f"(default: {default})",
    )
    data.add_argument("--task", help="sst2, mr, cr, subj, qnli, qqp, … (default: told by the data)")
    data.add_argument(
        "--text-column",
        nargs="+",
        action="extend",
        metavar="COLUMN",
        help="of a table or hub data set with unusual names; two for a pair of texts",
    )
    data.add_argument("--label-column", help="of a table or hub data set with unusual names")
    data.add_argument(
        "--label-pattern",
        help="of images or recordings: regular expression whose first group is the label in a file's name",
    )
    data.add_argument(
        "--shots", type=int, help="training examples per label to draw, and as many for the dev set"
    )
    if held_out:
        data.add_argument(
            "--test-data",
            help="held-out rows: a file, folder or hub id (default: the data's own, if any)",
        )
        data.add_argument("--dev-data", help="rows to choose by, likewise")
    data.add_argument(
        "--test-fraction", type=float, help="share of every label to hold out (default: 0, all rows train)"
    )
    if held_out:
        data.add_argument("--test-limit", type=int, help="most held-out examples (default: 1000)")
    return data


def add_readout_options(parser: argparse.ArgumentParser) -> None:
    """Add how outputs are read off the network."""
    readout = parser.add_argument_group("readout")
    readout.add_argument("--readout", choices=("auto", "prompt", "prototypes", "head"), help="default: auto")
    readout.add_argument(
        "--template",
        help="of the prompt: '{text} It was {mask}.', or '{text}? {mask}, {text2:lower_first}' for a pair",
    )
    readout.add_argument("--label-words", nargs="+", metavar="WORD", help="of the prompt: one per label")
    readout.add_argument(
        "--prototypes", nargs="+", metavar="SENTENCE", help="of a sentence encoder: one per label"
    )
    readout.add_argument(
        "--head-init",
        choices=("probe", "checkpoint", "random"),
        help="of a head: its weights (default: probe, a linear probe fitted to the data)",
    )
    readout.add_argument(
        "--max-length", type=int, help="tokens per text (default: all that the network takes)"
    )


def add_rest_options(parser: argparse.ArgumentParser) -> None:
    """Add the tolerance of certificates, where tangents are kept, and the memory that there is."""
    parser.add_argument(
        "--tolerance", type=float, help="gap ≤ tolerance·max(1, P) is certified (default: 1e-6)"
    )
    parser.add_argument("--tangent-dir", type=Path, help="where tangents are kept between runs")
    parser.add_argument(
        "--memory",
        type=_bytes,
        metavar="SIZE",
        help="that the run may take, such as 4GB or 3.5GiB (default: what is available)",
    )


def _bytes(text: str) -> int:
    """Return 4000000000 for 4GB, and 4·2³⁰ for 4GiB; a bare number counts bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?))?b?", text.strip(), re.IGNORECASE)
    if found is None:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a size such as 4GB, 500MB or 3.5GiB")
    number, prefix, binary = found.groups()
    power = " kmgt".index((prefix or " ").lower())
    return round(float(number) * float(1024 if binary else 1000) ** power)
