"""What a task asks: labels, label words, a prompt template and a sentence for each label; or completions."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
from dataclasses import dataclass

from tangentlora.errors import InputError


@dataclass(frozen=True)
class Task:
    """K labels in the order of the outputs, and the words by which a language model can name them.

    `labels` are the values of the label column, as strings; `label_words` (one per label) fill the mask of a
    prompt; `prototypes` (one sentence per label) are what a sentence encoder compares an input with.
    `template` has the fields `{text}` and `{mask}`, and `{text2}` when there are two `text_columns`; see
    :class:`tangentlora.models.MaskPrompt`. `folder` is the task's name in the published k-shot layout, and
    `columns` names the columns of that layout's files when they have no header (empty: the first row is the
    header). `synonyms` (none, or a tuple per label) are other values of a label column that mean the label:
    the names by which data sets of the hub call what the published files number, in an order of their own.
    Raises InputError when words, prototypes or synonyms do not match the labels, or the template not the
    texts.
    """

    name: str
    labels: tuple[str, ...]
    label_words: tuple[str, ...]
    template: str
    prototypes: tuple[str, ...]
    text_columns: tuple[str, ...] = ("text",)
    label_column: str = "label"
    folder: str = ""
    columns: tuple[str, ...] = ()
    synonyms: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        values = [*self.labels, *(value for group in self.synonyms for value in group)]
        if len(set(values)) != len(values):
            raise InputError(f"task {self.name} lists a label twice; give every label and synonym once")
        if self.synonyms and len(self.synonyms) != len(self.labels):
            raise InputError(
                f"task {self.name} has {len(self.synonyms)} tuples of synonyms and {len(self.labels)} "
                f"labels; give one each, empty where a label has none"
            )
        for kind, words in (("label words", self.label_words), ("prototypes", self.prototypes)):
            if len(words) != len(self.labels):
                raise InputError(
                    f"task {self.name} has {len(words)} {kind} and {len(self.labels)} labels; give one each"
                )
        if len(self.text_columns) not in (1, 2):
            raise InputError(
                f"task {self.name} has {len(self.text_columns)} text columns; give one, or two for a pair"
            )
        fields = (field for _, field, _, _ in string.Formatter().parse(self.template))
        found = sorted(field for field in fields if field is not None)
        expected = ["mask", "text", "text2"][: 1 + len(self.text_columns)]
        if found != expected:
            raise InputError(
                f"the template {self.template!r} of task {self.name} has the fields {found}; expected "
                f"each of {expected} once for {len(self.text_columns)} text column(s)"
            )

    @property
    def outputs(self) -> dict[str, int]:
        """The output, 0..K−1, that each label and each of its synonyms stands for."""
        groups = self.synonyms or ((),) * len(self.labels)
        return {
            value: k
            for k, (label, group) in enumerate(zip(self.labels, groups, strict=True))
            for value in (label, *group)
        }


COMPLETION = Task(
    name="completion",
    labels=("completion",),
    label_words=("completion",),
    template="{text} {mask}",
    prototypes=("The text goes on.",),
    text_columns=("prompt",),
    label_column="completion",
)
"""The task that has no classes: inputs are pairs (prompt, completion) and a network says how likely each is.

Its label column holds texts. All examples have the one label 0, which means nothing.
"""


def infer_task(
    values: Iterable[str],
    *,
    name: str = "custom",
    text_columns: tuple[str, ...] = ("text",),
    label_column: str = "label",
) -> Task:
    """Return a task made from the values of a label column alone.

    The labels are the distinct values, sorted as numbers if all are whole numbers and as text otherwise.
    Label words are the labels themselves, the template is `{text} It was {mask}.` and the prototypes are
    `It was <label>.`; a pair of texts gets `{text} {mask}, {text2}`. To word them better, pass the result
    through `dataclasses.replace`.
    """
    distinct = set(values)
    numeric = all(re.fullmatch(r"-?\d+", value) for value in distinct)
    labels = tuple(sorted(distinct, key=lambda value: (int(value) if numeric else 0, value)))
    return Task(
        name=name,
        labels=labels,
        label_words=labels,
        template="{text} It was {mask}." if len(text_columns) == 1 else "{text} {mask}, {text2}",
        prototypes=tuple(f"It was {label.replace('_', ' ')}." for label in labels),
        text_columns=text_columns,
        label_column=label_column,
    )
