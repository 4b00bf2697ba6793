"""How many tokens a network can take, and how much of the examples did not fit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, final

from torch import nn

from tangentlora.errors import InputError
from tangentlora.models.network import Features

UNLIMITED = 1024
"""Tokens at most where neither network nor tokenizer has a limit, as with relative positions."""

_NO_LIMIT = 10**9  # what tokenizers without a limit say is 1e30
_NAMES = (
    *("max_position_embeddings", "n_positions", "max_seq_len"),
    *("max_encoder_position_embeddings", "max_decoder_position_embeddings"),
)
_RELATIVE = ("alibi", "relative_attention", "relative_attention_num_buckets")


def positions(module: nn.Module) -> int | None:
    """Return how many tokens the network has positions for, None where it counts distances only.

    The least of what the configuration says and of the tables of position embeddings; RoBERTa and its kin
    count from the one after the padding index.
    """
    config = text_config(module)
    relative = any(getattr(config, name, None) for name in _RELATIVE)
    said = [] if relative else [getattr(config, name, None) for name in _NAMES]
    limits = [limit for limit in said if isinstance(limit, int) and limit > 0]
    for name, child in module.named_modules():
        table = getattr(child, "weight", None)
        if name.split(".")[-1] in ("position_embeddings", "wpe") and getattr(table, "ndim", 0) == 2:
            padding = getattr(child, "padding_idx", None)
            limits.append(table.shape[0] - (0 if padding is None else padding + 1))  # type: ignore[union-attr]
    return min(limits, default=None)


def length_limit(module: nn.Module, tokenizer: Any, max_length: int | None) -> int:
    """Return the number of tokens to read of an example: `max_length`, or all that network and tokenizer can.

    Where neither has a limit it is `UNLIMITED`. Raises `InputError` for a `max_length` below 1, or above the
    number of positions that the network has.
    """
    most = positions(module)
    if max_length is not None:
        if max_length < 1 or (most is not None and max_length > most):
            room = "a positive number" if most is None else f"1 to {most}, the positions that it has"
            raise InputError(
                f"got max_length={max_length} for {type(module).__name__}, expected {room}; change "
                "max_length or leave it out."
            )
        return max_length
    own = getattr(tokenizer, "model_max_length", None)
    limits = [most] if most is not None else []
    if own is not None and 0 < own < _NO_LIMIT:
        limits.append(int(own))
    return min(limits, default=UNLIMITED)


def text_config(module: nn.Module) -> Any:
    """Return the part of a network's configuration that is about text, or all of it."""
    config: Any = getattr(module, "config", None)
    try:
        return config.get_text_config()
    except (AttributeError, ValueError):  # no configuration of transformers, or several parts about text
        return config


@final
@dataclass(frozen=True)
class Cut:
    """What a limit took from examples: `cut` of them lost `lost` units in all and `most` in one at most.

    `part` says what is lost. A unit is a token, or a second of sound.
    """

    examples: int
    cut: int
    lost: float
    most: float
    limit: float
    unit: Literal["tokens", "seconds"]
    part: str

    def sentence(self, name: str) -> str:
        """Return what is said of the set `name`."""
        verb = "is" if self.cut == 1 else "are"
        return (
            f"{name}: {self.cut:,} of {self.examples:,} examples {verb} longer than {self.limit:,g} "
            f"{self.unit} and lost {self.part}: {self.lost:,.6g} {self.unit} in all, at most "
            f"{self.most:,.6g} of one"
        )

    def describe(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return asdict(self)


@final
class Encoded(list[Features]):
    """Encoded examples, and how much of each was longer than the limit."""

    def __init__(
        self,
        features: Iterable[Features],
        lost: Iterable[float],
        *,
        limit: float,
        part: str,
        unit: Literal["tokens", "seconds"] = "tokens",
    ) -> None:
        super().__init__(features)
        beyond = [amount for amount in lost if amount > 0]
        self.cut = Cut(len(self), len(beyond), sum(beyond), max(beyond, default=0), limit, unit, part)


def cut_of(features: list[Features]) -> Cut | None:
    """Return what the limit took from encoded examples, None for those that have no limit."""
    return features.cut if isinstance(features, Encoded) else None
