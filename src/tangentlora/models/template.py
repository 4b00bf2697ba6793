"""Prompt templates: where the texts and the mask stand, and which tokens give way when there is no room."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from tangentlora.errors import InputError

_PUNCTUATION = (".", "?", "!", ",", ";", ":")
_SENTENCE_END = re.compile(r"\s*([?!]+|\.)$")
_LOWER_FIRST = "lower_first"

CUT_TEXT = "the end of the text in the template (of the longer one of a pair)"
"""What an example loses where there is no room."""


@final
@dataclass(frozen=True)
class Template:
    """A parsed template: literals and fields in turn, one literal more than fields.

    `lowered` names the fields whose text begins in lower case, written `{text2:lower_first}`.
    """

    source: str
    literals: tuple[str, ...]
    fields: tuple[str, ...]
    lowered: frozenset[str]

    @classmethod
    def parse(cls, source: str) -> Template:
        """Parse a template.

        Raises `InputError` unless it holds {mask}, {text} and perhaps {text2}, once, and for any other
        format than `lower_first`, which the mask cannot have.
        """
        literals, fields, lowered = [""], [], set()
        try:
            for literal, name, spec, conversion in string.Formatter().parse(source):
                literals[-1] += literal
                if name is None:
                    continue
                if conversion or name not in ("mask", "text", "text2"):
                    raise ValueError(f"unknown field {name!r}")
                if spec and (name == "mask" or spec != _LOWER_FIRST):
                    raise ValueError(f"unknown format {spec!r} of the field {name!r}")
                if spec:
                    lowered.add(name)
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
                f"at most once, the texts as {{text:{_LOWER_FIRST}}} where they begin in lower case; write "
                f"for example '{{text}} It was {{mask}}.'."
            ) from error
        return cls(source, tuple(literals), tuple(fields), frozenset(lowered))

    @property
    def n_texts(self) -> int:
        return len(self.fields) - 1

    def fill(self, texts: tuple[str, ...], mask: str, example: int) -> tuple[str, list[tuple[int, int]]]:
        """Return the filled template and the half-open range of characters that each text takes in it.

        Texts lose their outer spaces, and where the template continues with punctuation of its own, the
        question and exclamation marks or the full stop at their end; a text of nothing else keeps them.
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
            if following.startswith(_PUNCTUATION):
                text = _SENTENCE_END.sub("", text) or text
            if name in self.lowered:
                text = text[:1].lower() + text[1:]
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
