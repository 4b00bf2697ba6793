"""The table of tasks against the published prompts, looking tasks up, and making one from labels alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tangentlora.data import TASKS, Task, infer_task, task
from tangentlora.errors import InputError
from tangentlora.models.template import Template

PAPER = {
    "sst2": ("{text} It was {mask}.", {"0": "terrible", "1": "great"}),
    "qnli": ("{text}? {mask}, {text2:lower_first}", {"not_entailment": "No", "entailment": "Yes"}),
    "mr": ("{text} It was {mask}.", {"0": "terrible", "1": "great"}),
    "cr": ("{text} It was {mask}.", {"0": "terrible", "1": "great"}),
    "qqp": ("{text} {mask}, {text2:lower_first}", {"0": "No", "1": "Yes"}),
    "subj": ("{text} This is {mask}.", {"0": "subjective", "1": "objective"}),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_six_tasks_have_its_templates_and_label_words(name: str) -> None:
    template, words = PAPER[name]
    assert TASKS[name].template == template
    assert dict(zip(TASKS[name].labels, TASKS[name].label_words, strict=True)) == words


def test_further_published_tasks_and_the_bundled_one_are_there() -> None:
    further = {"mnli", "snli", "rte", "mrpc", "sst5", "trec", "mpqa", "cola", "ag_news"}
    further |= {"support", "completion"}
    assert set(TASKS) == set(PAPER) | further
    assert TASKS["mnli"].label_words == ("No", "Maybe", "Yes")
    assert TASKS["trec"].template == "{mask}: {text}"
    assert len(TASKS["trec"].labels) == 6


@pytest.mark.parametrize("known", TASKS.values(), ids=TASKS)
def test_every_task_fills_its_template_and_names_each_label_once(known: Task) -> None:
    texts = ("Alpha", "Beta")[: len(known.text_columns)]
    prompt, slots = Template.parse(known.template).fill(texts, "[MASK]", 0)
    assert prompt.count("[MASK]") == 1
    assert [prompt[a:b] for a, b in slots] == ["Alpha", "beta"][: len(texts)]
    assert all(len(word.split()) == 1 for word in known.label_words)
    assert len(set(known.label_words)) == len(set(known.prototypes)) == len(known.labels)
    assert all(sentence.endswith(".") for sentence in known.prototypes)
    assert not known.columns or {known.label_column, *known.text_columns} <= set(known.columns)


def test_synonyms_stand_for_the_output_of_their_label() -> None:
    assert TASKS["subj"].outputs == {"0": 0, "subjective": 0, "1": 1, "objective": 1}
    assert TASKS["support"].outputs == {"billing": 0, "delivery": 1, "technical": 2, "account": 3}


def test_folders_of_the_published_layout_are_distinct() -> None:
    folders = [known.folder for known in TASKS.values() if known.folder]
    assert len(set(folders)) == len(folders) == 15


@pytest.mark.parametrize("name", ["sst2", "SST-2", "sst_2"])
def test_a_task_is_found_whatever_the_case_and_hyphens(name: str) -> None:
    assert task(name) is TASKS["sst2"]


def test_an_unknown_task_gets_the_nearest_name_and_the_list() -> None:
    with pytest.raises(
        InputError, match=r"'suport'; did you mean support\? .*sst2, qnli, .*leave the task out"
    ):
        task("suport")
    with pytest.raises(InputError, match="'zzz'; the known tasks"):
        task("zzz")


def test_a_task_made_from_labels_sorts_them_and_words_them_by_themselves() -> None:
    made = infer_task(["very_bad", "good", "very_bad"], label_column="verdict")
    assert made.labels == made.label_words == ("good", "very_bad")
    assert made.template == "{text} It was {mask}."
    assert made.prototypes == ("It was good.", "It was very bad.")
    assert made.label_column == "verdict"


def test_numbers_are_sorted_as_numbers_and_only_if_all_are() -> None:
    assert infer_task(["10", "2", "-1"]).labels == ("-1", "2", "10")
    assert infer_task(["10", "2", "x"]).labels == ("10", "2", "x")


def test_a_pair_gets_a_template_for_two_texts() -> None:
    made = infer_task(["a", "b"], text_columns=("left", "right"))
    assert made.template == "{text} {mask}, {text2}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ("0", "0")}, "lists a label twice"),
        ({"synonyms": (("bad",), ("good", "1"))}, "lists a label twice; give every label and synonym once"),
        ({"synonyms": (("bad",),)}, "has 1 tuples of synonyms and 2 labels; give one each, empty where"),
        ({"label_words": ("one",)}, "has 1 label words and 2 labels"),
        ({"prototypes": ()}, "has 0 prototypes and 2 labels"),
        ({"text_columns": ("a", "b", "c")}, "has 3 text columns; give one, or two"),
        (
            {"template": "{text} It was great."},
            r"has the fields \['text'\]; expected each of \['mask', 'text'\]",
        ),
        ({"template": "{text} {mask} {text2}"}, "once for 1 text column"),
        ({"template": "{text} {mask} {mask}"}, "once for 1 text column"),
    ],
)
def test_a_task_that_does_not_hold_together_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(TASKS["sst2"], **change)
