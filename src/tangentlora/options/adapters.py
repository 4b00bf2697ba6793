"""The verb that asks a trained adapter what it needs: audit."""

from __future__ import annotations

from typing import Any

from tangentlora.options.shared import add_data_options, add_readout_options, add_verb


def add_audit(verbs: Any) -> None:
    """Add `audit`: does a trained adapter need more training, more rank or less?"""
    parser = add_verb(
        verbs, "audit", "say if a trained adapter needs more training, more rank, less, or nothing"
    )
    parser.add_argument("adapter", metavar="ADAPTER", help="PEFT LoRA adapter: a folder or a hub id")
    parser.add_argument("--strict", action="store_true", help="exit 1 unless it is converged or wasteful")
    group = parser.add_argument_group(
        "penalty", "Without these, λ is that of the run beside the adapter, or fitted to it."
    )
    group.add_argument("--lam", type=float, help="λ of the nuclear norm")
    group.add_argument(
        "--weight-decay", type=float, help="w of the penalty w/2 (‖A‖² + ‖B‖²): λ = w/scaling by layer"
    )
    group.add_argument(
        "--no-local",
        dest="local",
        action="store_false",
        help="leave the local convex problem out, which takes K backward passes over the data, twice",
    )
    model = parser.add_argument_group("network", "Which matrices are adapted is told by the adapter.")
    model.add_argument("--model", help="hub id, folder or minilm (default: the adapter's base model)")
    model.add_argument("--revision", help="branch, tag or commit of a hub id")
    model.add_argument("--dtype", help="of the network: float32 (default), float64 or bfloat16")
    model.add_argument("--device", help="cpu (default), cuda, cuda:1, …")
    model.add_argument("--batch-size", type=int, help="examples per forward pass (default: 32)")
    add_data_options(parser).add_argument(
        "--data-seed", type=int, help="of the draw, and of the k-shot folder (default: 13)"
    )
    add_readout_options(parser)
