"""The verb that asks a trained adapter what it needs: audit."""

from __future__ import annotations

from typing import Any

from tangentlora.options.shared import add_adapter_options, add_verb


def add_audit(verbs: Any) -> None:
    """Add `audit`: does a trained adapter need more training, more rank or less?"""
    parser = add_verb(
        verbs, "audit", "say if a trained adapter needs more training, more rank, less, or nothing"
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="exit 1 unless it is converged or wasteful, and the network is better with it than without it",
    )
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
        help="leave the local convex problem out, which takes K-1 backward passes over the data, twice",
    )
    add_adapter_options(parser, held_out=False)
