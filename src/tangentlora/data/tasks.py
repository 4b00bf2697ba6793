"""The tasks known by name: the published k-shot collection, `support`, which is bundled, and `completion`."""

from __future__ import annotations

import difflib

from tangentlora.data.classification import COMPLETION, Task
from tangentlora.errors import InputError

_IT_WAS = "{text} It was {mask}."
_PAIR = "{text}? {mask}, {text2:lower_first}"
_DUPLICATE = "{text} {mask}, {text2:lower_first}"
_LABEL_TEXT = ("label", "text")  # the published csv files have no header
_NOT_ENTAILED = (("not entailment",), ())


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
        synonyms=(("negative", "neg"), ("positive", "pos")),
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
        synonyms=_NOT_ENTAILED,
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
        synonyms=(("not_duplicate", "not duplicate"), ("duplicate",)),
    ),
    Task(
        name="subj",
        labels=("0", "1"),
        label_words=("subjective", "objective"),
        template="{text} This is {mask}.",
        prototypes=("This is subjective.", "This is objective."),
        folder="subj",
        columns=_LABEL_TEXT,
        synonyms=(("subjective",), ("objective",)),
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
        synonyms=_NOT_ENTAILED,
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
        synonyms=(("not_equivalent", "not equivalent"), ("equivalent",)),
    ),
    Task(
        name="sst5",
        labels=("0", "1", "2", "3", "4"),
        label_words=("terrible", "bad", "okay", "good", "great"),
        template=_IT_WAS,
        prototypes=("It was terrible.", "It was bad.", "It was okay.", "It was good.", "It was great."),
        folder="sst-5",
        columns=_LABEL_TEXT,
        synonyms=(("very negative",), ("negative",), ("neutral",), ("positive",), ("very positive",)),
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
        label_column="label_coarse",  # beside the 50 fine ones that hub sets hold as `label`
        folder="trec",
        columns=("label_coarse", "text"),
        synonyms=(
            ("DESC", "description and abstract concepts"),
            ("ENTY", "entities"),
            ("ABBR", "abbreviation"),
            ("HUM", "human beings"),
            ("LOC", "locations"),
            ("NUM", "numeric values"),
        ),
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
        synonyms=(("unacceptable",), ("acceptable",)),
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
        synonyms=(("World",), ("Sports",), ("Business",), ("Sci/Tech",)),
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
    COMPLETION,
)

TASKS: dict[str, Task] = {known.name: known for known in _KNOWN}
"""The paper's six tasks, others of the published k-shot collection, the bundled `support`; `completion`."""


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


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
