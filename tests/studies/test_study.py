"""Studies: every shipped file, what wins over what, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tangentlora.data.tasks import TASKS
from tangentlora.errors import InputError
from tangentlora.studies.settings import Settings
from tangentlora.studies.study import BASELINES, Cell, Grid, load_study, plan, study_names

PAPER = ("sst2", "mr", "cr", "qnli", "subj", "qqp")


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", study_names())
def test_every_shipped_study_can_be_planned_in_all_its_sizes(name: str) -> None:
    study = load_study(name)
    assert study.title
    assert study.about.endswith(".")
    for size in ("full", *study.sizes):
        for case in plan(study, size).cases:
            assert case.settings.task in (*TASKS, None)
            slugs = [cell.slug for cell in case.cells]
            assert len(set(slugs)) == len(slugs)


def test_the_papers_studies_and_all_other_tasks_are_shipped() -> None:
    names = set(study_names())
    assert {*PAPER, "beans", "superb", "nlp", "all"} <= names
    assert {"mnli", "snli", "rte", "mrpc", "sst5", "trec", "mpqa", "cola", "ag_news"} <= names
    assert load_study("nlp").members == PAPER


@pytest.mark.parametrize(
    ("name", "rate"), [("sst2", 0.0005), ("qnli", 0.0005), *[(t, 0.001) for t in PAPER[1:3]]]
)
def test_the_rate_is_that_of_table_1_for_the_mean_over_32_examples(name: str, rate: float) -> None:
    settings = plan(load_study(name)).cases[0].settings
    assert settings.learning_rate == pytest.approx(32 * rate)
    assert (settings.momentum, settings.lam, settings.epochs) == (0.0, 0.01, 1000)
    assert (settings.shots, settings.layers, settings.target_modules) == (16, "last", ("query", "value"))


def test_a_case_has_its_seed_for_examples_and_factors_and_its_own_name() -> None:
    cases = plan(load_study("nlp"), grid={"seeds": (13, 21)}).cases
    assert [case.name for case in cases[:4]] == ["sst2-13", "sst2-21", "mr-13", "mr-21"]
    assert all(case.settings.seed == case.settings.data_seed for case in cases)
    assert [case.settings.seed for case in cases[:2]] == [13, 21]


def test_later_sources_win() -> None:
    member = plan(load_study("sst2")).cases[0].settings
    over = plan(load_study("minilm")).cases[0].settings
    assert (member.model, over.model) == ("FacebookAI/roberta-base", "minilm")
    assert (member.learning_rate, over.learning_rate) == (0.016, "auto")
    assert over.task == "sst2"
    small = plan(load_study("minilm"), "ci").cases[0]
    assert (small.settings.epochs, small.grid.ranks) == (100, (1, 4))
    given = plan(load_study("minilm"), "ci", {"epochs": 7}, {"ranks": (2,), "lams": (0.5,)}).cases[0]
    assert (given.settings.epochs, given.grid.ranks, given.settings.lam) == (7, (2,), 0.5)


def test_cells_come_with_the_optimum_first_and_baselines_last() -> None:
    grid = Grid(
        ranks=(1, 2),
        side_ranks=(4,),
        lams=(0.1,),
        dev_lams=(0.1, 1.0),
        variants=("zero-shot", "lora", "full", "certified", "published"),
    )
    case = plan(load_study("sst2")).cases[0]
    slugs = [cell.slug for cell in replace(case, grid=grid).cells]
    assert slugs == [
        "certified-lam0.1",
        "certified-lam1",
        "lora-r1-lam0.1",
        "lora-r2-lam0.1",
        "full-lam0.1",
        "published-r4-lam0.1",
        "zero-shot",
    ]
    assert set(BASELINES) == {"zero-shot", "logistic-regression", "peft-lora"}


def test_names_say_what_a_cell_is() -> None:
    assert Cell("lora", 8, 0.01).name == "LoRA r=8, λ=0.01"
    assert Cell("full", None, 0.01).name == "full fine-tuning, λ=0.01"
    assert Cell("zero-shot").name == "zero-shot"


def test_a_study_of_ones_own(tmp_path: Path) -> None:
    text = "settings: {data: mine.csv, shots: 4}\ngrid: {seeds: [1], ranks: [2, 3]}\n"
    study = load_study(write(tmp_path, f"title: Mine\nabout: Two ranks.\n{text}"))
    (case,) = plan(study).cases
    assert (study.name, case.settings.data, case.settings.shots, case.grid.ranks) == (
        "mine",
        "mine.csv",
        4,
        (2, 3),
    )
    assert case.settings == replace(
        Settings(), solver="sgd", data="mine.csv", shots=4, data_seed=1, seed=1, lam=0.01
    )


def test_a_later_choice_ends_the_say_of_what_was_said_before_it() -> None:
    case = plan(load_study("sst2"), settings={"solver": "lbfgs"}).cases[0]
    assert (case.settings.solver, case.settings.momentum) == ("lbfgs", None)
    assert case.settings.learning_rate == 0.016
    alone = plan(load_study("sst2"), grid={"variants": ("certified",)}).cases[0]
    assert (alone.settings.epochs, alone.settings.learning_rate) == (Settings.epochs, "auto")
    with pytest.raises(InputError, match="in what is given here: got a momentum with the solver adamw"):
        plan(load_study("sst2"), settings={"solver": "adamw", "momentum": 0.5})
    with pytest.raises(InputError, match=r"got epochs in what is given here, .* with the variants certified"):
        plan(load_study("sst2"), settings={"epochs": 5}, grid={"variants": ("certified",)})


def test_no_shipped_study_takes_minibatches_unasked() -> None:
    for name in study_names():
        assert all(case.settings.minibatch_size is None for case in plan(load_study(name)).cases)


SETTINGS = "title: A\nabout: B\nsettings: "
GRID = "title: A\nabout: B\ngrid: "


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("title: [", "which is not YAML"),
        ("just text", "expected title, about"),
        ("title: A\nabout: B\nsetings: {}\n", "setings"),
        ("title: A\nabout: B\nsettings: {epoch: 3}\n", "got epoch in the settings"),
        ("title: A\nabout: B\ngrid: {rank: [1]}\n", "got rank in the grid"),
        ("title: A\nabout: B\nmade: clouds\n", "got made: 'clouds'"),
        ("title: A\nabout: B\nmembers: [nlp]\n", "got the members nlp in the study mine, which have members"),
        ("title: A\nabout: B\nsizes: {ci: {setings: {}}}\n", "got setings in the size ci of"),
        ("title: A\nabout: B\nsizes: {ci: 3}\n", "got 3 in the size ci of"),
        (SETTINGS + "{lam: 0.1}\n", "got lam in the settings of the study mine"),
        (SETTINGS + "{rank: 4}\n", "which a study does not read, expected ranks in the grid"),
        (SETTINGS + "{outer: 4}\n", "got outer in the settings of the study mine"),
        (SETTINGS + "{solver: certified}\n", "got the solver certified in the study mine"),
        (SETTINGS + "{solver: adamw, momentum: 0.5}\n", "in the study mine: got a momentum with the solver"),
        (SETTINGS + "{minibatch_size: 8, solver: lbfgs}\n", "got a minibatch size with the solver lbfgs"),
        (SETTINGS + "{readout: head, template: '{text} {mask}'}\n", "got a template with the readout head"),
        (SETTINGS + "{perturbation: 0.1}\n", "got perturbation in the study mine, which has no say with"),
        (SETTINGS + "{epochs: many}\n", "got epochs: 'many' in the settings of the study mine"),
        (SETTINGS + "{learning_rate: 1e-3}\n", "expected a number such as 0.001"),
        (SETTINGS + "[1]\n", "got settings: [1] in the study mine, expected names with values"),
        ("title: A\nabout: B\ngrid: {seeds: 13}\n", "got seeds: 13 in the grid of the study mine"),
        (GRID + "{side_ranks: [2], variants: [lora]}\n", "got side_ranks in the study mine"),
        (GRID + "{dev_lams: [2.0], variants: [lora]}\n", "got dev_lams in the study mine"),
        (GRID + "{ranks: [2], variants: [certified]}\n", "got ranks in the study mine"),
        (GRID + "{real: [lora], variants: [certified]}\n", "got real: lora in the study mine"),
        (GRID + "{variants: [perturbed]}\n", "got the variant perturbed with a perturbation of 0"),
        ("title: A\nabout: B\nmembers: [nothing]\n", "got the study 'nothing'"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(InputError, match="expected") as error:
        plan(load_study(write(tmp_path, text)))
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("grid", "reason"),
    [
        ({"seeds": ()}, "without seeds"),
        ({"variants": ("lora", "magic")}, "got the variants magic"),
        ({"lams": (0.0,)}, "expected positive ones"),
        ({"ranks": (0,)}, "expected ranks of at least 1"),
        ({"within": 2.0}, "within 2.0"),
    ],
)
def test_an_impossible_grid_is_refused(grid: dict[str, object], reason: str) -> None:
    with pytest.raises(InputError, match="expected") as error:
        plan(load_study("sst2"), grid=grid)
    assert reason in str(error.value)


def test_unknown_studies_and_sizes_are_refused_with_what_there_is() -> None:
    with pytest.raises(InputError, match="sst2") as error:
        load_study("sst3")
    assert "--list" in str(error.value)
    with pytest.raises(InputError, match=r"got the size 'huge', expected one of full, ci"):
        plan(load_study("sst2"), "huge")
