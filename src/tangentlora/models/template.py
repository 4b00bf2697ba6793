"""Prompt templates: where the texts and the mask stand, and which tokens give way when there is no room."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from tangentlora.errors import InputError

_SENTENCE_END = ".?!"
_PUNCTUATION = _SENTENCE_END + ",;:"


@final
@dataclass(frozen=True)
class Template:
    """A parsed template: literals and fields in turn, one literal more than fields."""

    source: str
    literals: tuple[str, ...]
    fields: tuple[str, ...]

    @classmethod
    def parse(cls, source: str) -> Template:
        """Parse a template; raise `InputError` unless it holds {mask}, {text} and perhaps {text2}, once."""
        literals, fields = [""], []
        try:
            for literal, name, spec, conversion in string.Formatter().parse(source):
                literals[-1] += literal
                if name is None:
                    continue
                if spec or conversion or name not in ("mask", "text", "text2"):
                    raise ValueError(f"unknown field {name!r}")
                if name == "mask":
                    # The space belongs to the word under the mask: byte-level tokens contain it.
                    literals[-1] = literals[-1].rstrip()
                fields.append(name)
                literals.append("")
            if sorted(fields) not in (["mask", "text"], ["mask", "text", "text2"]):
                raise ValueError(f"its fields are {', '.join(fields) or 'none'}")
        except ValueError as error:
            raise InputError(
                f"got the template {source!r} ({error}), expected {{mask}} and {{text}} once and {{text2}} "
                f"at most once; write for example '{{text}} It was {{mask}}.'."
            ) from error
        return cls(source, tuple(literals), tuple(fields))

    @property
    def n_texts(self) -> int:
        return len(self.fields) - 1

    def fill(self, texts: tuple[str, ...], mask: str, example: int) -> tuple[str, list[tuple[int, int]]]:
        """Return the filled template and the half-open range of characters that each text takes in it.

        Texts lose their outer spaces, and their final punctuation where the template continues with its own.
        """
        if len(texts) != self.n_texts:
            raise InputError(
                f"got {len(texts)} text(s) in example {example}, expected {self.n_texts} for the template "
                f"{self.source!r}; change the template or the data's text columns."
            )
        by_name = dict(zip(("text", "text2"), texts, strict=False))
        sentence, slots = self.literals[0], []
        for name, following in zip(self.fields, self.literals[1:], strict=True):
            if name == "mask":
                sentence += mask + following
                continue
            text = by_name[name].strip()
            if following.startswith(tuple(_PUNCTUATION)):
                text = text.rstrip(_SENTENCE_END + " ") or text
            slots.append((len(sentence), len(sentence) + len(text)))
            sentence += text + following
        return sentence, slots


def cut(
    offsets: Sequence[tuple[int, int]], slots: Sequence[tuple[int, int]], max_length: int
) -> list[int] | None:
    """Return the positions of at most `max_length` tokens to keep, dropping from the end of the longer text.

    `offsets` are the tokens' ranges of characters, `slots` those of the texts. Only tokens of the texts are
    dropped; None says that the others alone are too many.
    """
    # A token belongs to the text that holds its last character, so one that ends in the template stays.
    owned = [[i for i, (a, b) in enumerate(offsets) if a < b and start < b <= end] for start, end in slots]
    excess = len(offsets) - max_length
    if excess > sum(map(len, owned)):
        return None
    dropped = {max(owned, key=len).pop() for _ in range(excess)}
    return [i for i in range(len(offsets)) if i not in dropped]
