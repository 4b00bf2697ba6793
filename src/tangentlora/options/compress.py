"""The verb that makes a trained adapter smaller: compress."""

from __future__ import annotations

from typing import Any

from tangentlora.options.shared import add_adapter_options, add_output_option, add_verb


def add_compress(verbs: Any) -> None:
    """Add `compress`: fewer ranks, the same outputs on the data."""
    parser = add_verb(verbs, "compress", "make a trained adapter smaller and keep what it does on the data")
    add_output_option(parser, "runs/compressed")
    group = parser.add_argument_group("size", "Without these, down to what Theorem 1 promises.")
    group.add_argument("--rank", type=int, help="most ranks in a layer")
    group.add_argument(
        "--tolerance", type=float, help="most that an output on the data may change; as small as that allows"
    )
    group.add_argument(
        "--no-polish",
        dest="polish",
        action="store_false",
        help="leave the directions that are kept as they were, without refitting them on the network",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="exit 1 unless the adapter holds on the real network, as given and compressed",
    )
    add_adapter_options(parser)
