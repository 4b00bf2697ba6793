"""Plans of small problems: what they say, what they refuse, and that they cost next to nothing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tangentlora.studies.planning as planning
import tangentlora.tangent.trial_run as trial_run
from command_line import Shell, assert_bad_input, status_of
from small_runs import small_settings, write_images, write_sentences
from tangentlora.errors import InputError
from tangentlora.models.prompt import PromptReader
from tangentlora.studies.plan import Plan, PlannedSet
from tangentlora.studies.prepare import prepare
from tangentlora.studies.resources import free_disk, held_memory, usable_memory

PLAN = Plan(
    sets=(
        PlannedSet("train", 2000, 90_000, False, 3 * 10**9, 40 * 10**9, 7200.0),
        PlannedSet("test", 1000, None, True, 0, 20 * 10**9, None),
    ),
    outputs=4,
    backward=3,
    measured=True,
    folder=Path("/data/tangents"),
    free=10 * 10**9,
    memory=8 * 10**9,
    linearising=2 * 10**9,
    solving=6 * 10**9,
    in_blocks=10**9,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def test_a_plan_in_words() -> None:
    assert PLAN.text().splitlines() == [
        "plan",
        "  train: 2,000 examples of 90,000 tokens, 2,000 forward and 6,000 backward passes, 3 GB to store "
        "(dense: 40 GB), about 2.0 h",
        "  test: 1,000 examples, whose tangent is in the store already",
        "  memory: about 6 GB of 8 GB",
        "  disk: about 3 GB of 10 GB free",
    ]
    small = replace(PLAN, measured=False, sets=(replace(PLAN.sets[0], seconds=None),), memory=5 * 10**9)
    assert "at most 3 GB to store (dense: 40 GB)\n" in small.text()
    assert "memory: at most 2 GB of 5 GB, with the rows read from the store in blocks\n" in small.text()
    described = json.loads(json.dumps(PLAN.describe()))
    assert (described["stored"], described["peak"], described["folder"]) == (
        3 * 10**9,
        6 * 10**9,
        "/data/tangents",
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"free": 2 * 10**9},
            "got tangents of 3 GB to store in /data/tangents, expected at most the 2 GB that are free "
            "there: choose another --tangent-dir, --layers last, .* or a smaller --test-limit",
        ),
        (
            {"memory": 10**9},
            "got a run that takes 2 GB of memory to linearise a batch, expected at most 1 GB: choose a "
            "smaller --batch-size or --max-length, --layers last, .* larger --memory .* torchrun",
        ),
        (
            {"memory": 5 * 10**9, "linearising": 0, "in_blocks": 6 * 10**9},
            "got a run that takes 6 GB of memory to solve, expected at most 5 GB: choose --layers last",
        ),
    ],
    ids=str,
)
def test_what_cannot_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    PLAN.require()
    assert PLAN.fits
    refused = replace(PLAN, **changes)
    assert not refused.fits
    with pytest.raises(InputError, match=message):
        refused.require()


def test_a_full_disk_is_told_before_the_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = small_settings(folder, data=str(write_sentences(folder / "many.csv", 700)))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match=r"expected at most the 1 kB that are free there"):
        prepare(settings)
    assert not settings.tangent_dir.exists()


def test_too_little_memory_is_told_before_the_work(folder: Path) -> None:
    settings = small_settings(folder, memory=10**6)
    with pytest.raises(InputError, match=r"of memory to .*, expected at most 1 MB: choose"):
        prepare(settings)
    assert not settings.tangent_dir.exists()


def test_processes_decide_alike() -> None:
    other = replace(PLAN, free=1, memory=2, linearising=3 * 10**9, solving=7 * 10**9, in_blocks=3 * 10**9)
    for plans in ([PLAN, other], [other, PLAN]):
        made = planning.agreed(plans)
        assert (made.free, made.memory, made.linearising) == (1, 2, 3 * 10**9)
        assert (made.solving, made.in_blocks) == (7 * 10**9, 3 * 10**9)


def test_processes_on_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    alone = usable_memory(cpu) - held_memory(cpu)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert usable_memory(cpu) - held_memory(cpu) == pytest.approx(alone / 4, rel=0.2)


def test_rows_that_do_not_fit_are_to_be_read_in_blocks() -> None:
    assert not PLAN.reads_blocks
    tight = replace(PLAN, memory=4 * 10**9)
    assert tight.reads_blocks
    assert tight.fits
    assert tight.peak == tight.linearising


def test_few_texts_are_planned_without_a_pass(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a pass was made")

    monkeypatch.setattr(trial_run, "capture", never)
    prepared = prepare(small_settings(folder), progress=True)
    assert not prepared.plan.measured
    said = capsys.readouterr()
    assert said.out == ""
    assert "plan\n  train: 18 examples of 144 tokens, 18 forward and 18 backward passes, at most" in said.err
    assert prepared.plan.stored >= prepared.train.jacobian.nbytes


def test_many_texts_are_planned_from_a_sample(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = small_settings(folder, data=str(write_sentences(folder / "many.csv", 700)))
    plan = prepare(settings).plan
    assert "plan" not in capsys.readouterr().err
    assert plan.measured
    assert all(part.seconds is not None and not part.ready for part in plan.sets)
    size = sum(path.stat().st_size for path in settings.tangent_dir.rglob("*") if path.is_file())
    assert plan.stored == pytest.approx(size, rel=0.1)
    again = prepare(settings, progress=True).plan
    assert [part.ready for part in again.sets] == [True, True]
    assert again.stored == 0
    assert capsys.readouterr().err.count("whose tangent is in the store already") == 2
    assert again.solving - held_memory(torch.device("cpu")) < 10 * size + 2**28  # the solver's own


def test_only_the_set_that_is_missing_is_planned(folder: Path) -> None:
    settings = small_settings(folder)
    prepare(replace(settings, test_limit=1))
    plan = prepare(settings).plan
    assert [(part.name, part.ready) for part in plan.sets] == [("train", True), ("test", False)]
    assert plan.stored == plan.sets[1].stored > 0


def test_images_are_planned_from_a_sample(folder: Path) -> None:
    images = write_images(folder / "images", ("red", "green", "blue"), each=24)
    settings = small_settings(folder, "vit", data=str(images))
    plan = prepare(settings).plan
    assert plan.measured
    assert [part.tokens for part in plan.sets] == [None, None]
    size = sum(path.stat().st_size for path in settings.tangent_dir.rglob("*") if path.is_file())
    assert plan.stored == pytest.approx(size, rel=0.1)


def test_inputs_are_encoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = small_settings(folder, "roberta-mlm", label_words=("terrible", "great"), readout="prompt")
    encode, encoded = PromptReader.encode, []
    monkeypatch.setattr(
        PromptReader, "encode", lambda self, inputs: encoded.append(len(inputs)) or encode(self, inputs)
    )
    prepare(settings)
    assert encoded[1:] == [18, 6]  # after the prompt on which the readout is tried


def test_a_reader_that_knows_some_inputs_reads_others_too(folder: Path) -> None:
    network = prepare(small_settings(folder)).network
    known, other = ["a great movie"], ["a great movie"]
    own = planning.EncodedSet(known, network.reader.encode(["a dull story"])).read_by(network)
    assert own.reader.describe() == network.reader.describe()
    expected = network.reader.encode(other)[0]["input_ids"]
    assert torch.equal(own.reader.encode(other)[0]["input_ids"], expected)
    assert not torch.equal(own.reader.encode(known)[0]["input_ids"], expected)


def test_what_there_is() -> None:
    cpu = torch.device("cpu")
    held = held_memory(cpu)
    block = torch.ones(2**25)  # 128 MB
    assert held_memory(cpu) - held == pytest.approx(block.nbytes, rel=0.1)
    assert held < usable_memory(cpu)
    assert free_disk(Path("/no/such/folder")) == shutil.disk_usage("/").free


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4GB", 4 * 10**9), ("1.5 gib", 3 * 2**29), ("500M", 5 * 10**8), ("2TiB", 2**41), ("1000", 1000)],
)
def test_memory_on_the_command_line(text: str, expected: int) -> None:
    from tangentlora.options.shared import _bytes

    assert _bytes(text) == expected


def test_memory_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shell = Shell(tmp_path)
    assert_bad_input(shell.fit("--memory", "much"), "got 'much', expected a size such as 4GB", capsys)
    assert_bad_input(shell.fit("--memory", "0"), "got 0 bytes of memory, expected at least 1", capsys)
    assert not shell.run.exists()


def test_a_fit_says_its_plan_on_stderr_unless_quiet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shell = Shell(tmp_path)
    assert status_of(shell.fit("--json", "--memory", "16GB")) == 0
    said = capsys.readouterr()
    assert " of 16 GB\n" in said.err
    json.loads(said.out)
    assert status_of(shell.fit("--quiet")) == 0
    assert "plan" not in capsys.readouterr().err
