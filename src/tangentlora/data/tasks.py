"""What a classification task asks: labels, label words, a prompt template, a sentence naming each label."""

from __future__ import annotations

import difflib
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
    `template` has the fields `{text}` and `{mask}`, and `{text2}` when there are two `text_columns`.
    `folder` is the task's name in the published k-shot layout, and `columns` names the columns of that
    layout's files when they have no header (empty: the first row is the header).
    Raises InputError when words or prototypes do not match the labels, or the template not the texts.
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

    def __post_init__(self) -> None:
        if len(set(self.labels)) != len(self.labels):
            raise InputError(f"task {self.name} lists a label twice; give every label once")
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


def task(name: str) -> Task:
    """Return the known task of that name; case, `-` and `_` do not matter (`SST-2` is `sst2`).

    Raises InputError, with the nearest name and all of them, when there is no such task.
    """
    names = {_plain(key): key for key in TASKS}
    if _plain(name) in names:
        return TASKS[names[_plain(name)]]
    near = difflib.get_close_matches(_plain(name), names, n=1)
    hint = f"did you mean {names[near[0]]}? " if near else ""
    raise InputError(
        f"unknown task {name!r}; {hint}the known tasks are {', '.join(TASKS)}; leave the task out to take "
        f"the labels from the data"
    )


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


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


_IT_WAS = "{text} It was {mask}."
_PAIR = "{text}? {mask}, {text2}"
_DUPLICATE = "{text} {mask}, {text2}"
_LABEL_TEXT = ("label", "text")  # the published csv files have no header


def _sentiment(name: str, folder: str, text_column: str, columns: tuple[str, ...] = ()) -> Task:
    return Task(
        name=name,
        labels=("0", "1"),
        label_words=("terrible", "great"),
        template=_IT_WAS,
        prototypes=("It was terrible.", "It was great."),
        text_columns=(text_column,),
        folder=folder,
        columns=columns,
    )


def _inference(name: str, folder: str, label_column: str = "gold_label") -> Task:
    return Task(
        name=name,
        labels=("contradiction", "neutral", "entailment"),
        label_words=("No", "Maybe", "Yes"),
        template=_PAIR,
        prototypes=(
            "The second contradicts the first.",
            "They are unrelated.",
            "The second follows from the first.",
        ),
        text_columns=("sentence1", "sentence2"),
        label_column=label_column,
        folder=folder,
    )


_KNOWN = (
    _sentiment("sst2", "SST-2", "sentence"),
    Task(
        name="qnli",
        labels=("not_entailment", "entailment"),
        label_words=("No", "Yes"),
        template=_PAIR,
        prototypes=("The sentence does not answer the question.", "The sentence answers the question."),
        text_columns=("question", "sentence"),
        folder="QNLI",
    ),
    _sentiment("mr", "mr", "text", _LABEL_TEXT),
    _sentiment("cr", "cr", "text", _LABEL_TEXT),
    Task(
        name="qqp",
        labels=("0", "1"),
        label_words=("No", "Yes"),
        template=_DUPLICATE,
        prototypes=("The two questions are different.", "The two questions are the same."),
        text_columns=("question1", "question2"),
        label_column="is_duplicate",
        folder="QQP",
    ),
    Task(
        name="subj",
        labels=("0", "1"),
        label_words=("subjective", "objective"),
        template="{text} This is {mask}.",
        prototypes=("This is subjective.", "This is objective."),
        folder="subj",
        columns=_LABEL_TEXT,
    ),
    _inference("mnli", "MNLI"),
    _inference("snli", "SNLI"),
    Task(
        name="rte",
        labels=("not_entailment", "entailment"),
        label_words=("No", "Yes"),
        template=_PAIR,
        prototypes=("The second does not follow from the first.", "The second follows from the first."),
        text_columns=("sentence1", "sentence2"),
        folder="RTE",
    ),
    Task(
        name="mrpc",
        labels=("0", "1"),
        label_words=("No", "Yes"),
        template=_DUPLICATE,
        prototypes=("The two sentences are different.", "The two sentences mean the same."),
        text_columns=("#1 String", "#2 String"),
        label_column="Quality",
        folder="MRPC",
    ),
    Task(
        name="sst5",
        labels=("0", "1", "2", "3", "4"),
        label_words=("terrible", "bad", "okay", "good", "great"),
        template=_IT_WAS,
        prototypes=("It was terrible.", "It was bad.", "It was okay.", "It was good.", "It was great."),
        folder="sst-5",
        columns=_LABEL_TEXT,
    ),
    Task(
        name="trec",
        labels=("0", "1", "2", "3", "4", "5"),
        label_words=("Description", "Entity", "Expression", "Human", "Location", "Number"),
        template="{mask}: {text}",
        prototypes=(
            "This asks for a description.",
            "This asks for an entity.",
            "This asks for an expression.",
            "This asks for a human.",
            "This asks for a location.",
            "This asks for a number.",
        ),
        folder="trec",
        columns=_LABEL_TEXT,
    ),
    _sentiment("mpqa", "mpqa", "text", _LABEL_TEXT),
    Task(
        name="cola",
        labels=("0", "1"),
        label_words=("incorrect", "correct"),
        template="{text} This is {mask}.",
        prototypes=("This is incorrect.", "This is correct."),
        text_columns=("sentence",),
        folder="CoLA",
        columns=("source", "label", "mark", "sentence"),
    ),
    Task(
        name="ag_news",
        labels=("1", "2", "3", "4"),
        label_words=("world", "sports", "business", "tech"),
        template="{text} This article is about {mask} news.",
        prototypes=(
            "This is world news.",
            "This is sports news.",
            "This is business news.",
            "This is tech news.",
        ),
        folder="ag_news",
        columns=("label", "title", "text"),
    ),
    Task(
        name="support",
        labels=("billing", "delivery", "technical", "account"),
        label_words=("payment", "delivery", "technical", "account"),
        template="{text} This is a {mask} question.",
        prototypes=(
            "This is about paying, an invoice or a refund.",
            "This is about the delivery of an order.",
            "This is about a technical fault.",
            "This is about signing in or account settings.",
        ),
    ),
)

TASKS: dict[str, Task] = {known.name: known for known in _KNOWN}
"""The paper's six tasks, others of the published k-shot collection, and `support`, which is bundled."""
