from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.io import wavfile

from small_runs import LABELS, checkpoint, small_settings, write_images, write_sentences, write_sounds
from tangentlora.data import COMPLETION, Examples, check_data, task
from tangentlora.errors import InputError
from tangentlora.models import CausalPrompt, ClassificationHead, Completion, MaskPrompt, Prototypes
from tangentlora.studies.prepare import Prepared, choose_readout, prepare, scores
from tangentlora.studies.task_data import load_task


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prepared")


def assert_consistent(prepared: Prepared) -> None:
    """The problem is the linearisation of the network that is held, on the examples that are held."""
    inputs, labels = prepared.splits.train.inputs, prepared.splits.train.labels
    z = prepared.network.predict(inputs)
    torch.testing.assert_close(prepared.problem.f0, z.double(), rtol=1e-4, atol=1e-5)
    assert prepared.problem.y.tolist() == list(labels)
    assert prepared.problem.jacobian.dtype is torch.float64
    assert prepared.problem.jacobian.shapes == {t.name: t.shape for t in prepared.targets}
    assert prepared.problem.lam == prepared.settings.lam
    assert prepared.test is not None
    assert prepared.splits.test is not None
    assert len(prepared.test.f0) == len(prepared.splits.test)


def test_sentences_with_a_linear_probe(folder: Path) -> None:
    prepared = prepare(small_settings(folder, lam=0.3))
    assert_consistent(prepared)
    accuracy = scores(prepared.problem.f0, prepared.splits.train.labels, "train")["train_accuracy"]
    assert accuracy > 0.9  # the probe has been fitted
    assert [t.name.split(".")[-1] for t in prepared.targets] == ["query", "value"]
    assert all(".1." in t.name for t in prepared.targets)


def test_sentences_with_a_prompt(folder: Path) -> None:
    prepared = prepare(small_settings(folder, "bert-mlm", label_words=("terrible", "great"), layers="all"))
    assert_consistent(prepared)
    assert prepared.network.reader.describe()["readout"] == "mask-prompt"
    assert len(prepared.targets) == 4


@pytest.mark.parametrize("kind", ["gpt2-lm", "llama-lm"])
def test_sentences_with_a_causal_prompt(folder: Path, kind: str) -> None:
    prepared = prepare(small_settings(folder, kind, label_words=("terrible", "great")))
    assert_consistent(prepared)
    assert prepared.network.reader.describe()["readout"] == "causal-prompt"
    assert prepared.problem.jacobian.n_outputs == 2


def test_completions_are_read_by_their_likelihood_and_have_no_convex_problem(
    folder: Path, tmp_path: Path
) -> None:
    settings = small_settings(folder, "gpt2-lm", max_length=40)
    pair = Examples((("a", " b"),), (0,), COMPLETION.labels)
    assert choose_readout(settings, COMPLETION, pair) == Completion(40)
    with pytest.raises(InputError, match="got --readout head for completions, expected their likelihood"):
        choose_readout(small_settings(folder, "gpt2-lm", readout="head"), COMPLETION, pair)
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "it is", "completion": " great"}\n' * 8)
    with pytest.raises(
        InputError, match=r"got completions, whose loss is linear .* has the minimiser 0 or none"
    ):
        prepare(small_settings(folder, "gpt2-lm", data=str(data)))


def test_images_and_sounds(folder: Path) -> None:
    images = write_images(folder / "images", ("red", "green", "blue"))
    prepared = prepare(small_settings(folder, "vit", data=str(images)))
    assert_consistent(prepared)
    assert prepared.problem.jacobian.n_outputs == 3
    sounds = write_sounds(folder / "sounds")
    prepared = prepare(small_settings(folder, "wav2vec2", data=str(sounds)))
    assert_consistent(prepared)
    assert prepared.splits.train.sampling_rate == 16_000


def test_recordings_of_several_rates_are_heard_at_the_networks(folder: Path) -> None:
    sounds = write_sounds(folder / "rates")
    one = next(sounds.rglob("*.wav"))
    _, samples = wavfile.read(one)
    wavfile.write(one, 22_050, samples)
    splits = load_task(small_settings(folder, "wav2vec2", data=str(sounds)))
    assert splits.train.sampling_rate == 16_000
    told = " ".join(check_data(splits).told().split())
    assert "22050 Hz and are resampled to 16000 Hz." in told


def test_the_tangent_is_read_from_the_store_the_second_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = small_settings(folder, tangent_dir=folder / "again", seed=5)
    first = prepare(settings, progress=True)
    assert "linearising" in capsys.readouterr().err
    second = prepare(settings, progress=True)
    assert "linearising" not in capsys.readouterr().err
    assert second.train.source == first.train.source == folder / "again" / first.train.key
    assert torch.equal(first.problem.f0, second.problem.f0)
    for name, rows in first.problem.rows.layers.items():
        assert torch.equal(rows.g, second.problem.rows.layers[name].g)
    # a relative folder is recorded in full, since run.json may be read from elsewhere
    monkeypatch.chdir(folder)
    third = prepare(small_settings(folder, tangent_dir=Path("again"), seed=5))
    assert third.train.source == first.train.source


def examples(modality: Any = "text") -> Examples:
    return Examples(("a", "b"), (0, 1), LABELS, modality)


def test_the_readout_is_the_checkpoints_own_unless_one_is_named(folder: Path) -> None:
    known = task("sst2")
    mlm, head = small_settings(folder, "bert-mlm"), small_settings(folder)
    prompt = choose_readout(mlm, known, examples())
    assert prompt == MaskPrompt(known.template, known.label_words)
    named = small_settings(
        folder, "bert-mlm", template="{mask}: {text}", label_words=("bad", "good"), max_length=9
    )
    assert choose_readout(named, known, examples()) == MaskPrompt("{mask}: {text}", ("bad", "good"), 9)
    assert choose_readout(head, known, examples()) == ClassificationHead(2, init="probe")
    assert choose_readout(mlm, known, examples("image")) == ClassificationHead(2, "probe", "image")
    sentences = small_settings(folder, readout="prototypes")
    assert choose_readout(sentences, known, examples()) == Prototypes(known.prototypes)
    causal = small_settings(folder, "gpt2-lm", max_length=9)
    assert choose_readout(causal, known, examples()) == CausalPrompt(known.template, known.label_words, 9)
    decoder = small_settings(folder, "gpt2")  # saved with a classifier
    assert choose_readout(decoder, known, examples()) == ClassificationHead(2, init="probe")
    asked = small_settings(folder, "gpt2", readout="prompt")
    assert choose_readout(asked, known, examples()) == CausalPrompt(known.template, known.label_words)
    named = small_settings(folder, readout="prototypes", prototypes=("No.", "Yes."))
    assert choose_readout(named, known, examples()) == Prototypes(("No.", "Yes."))
    drawn = small_settings(folder, readout="head", head_init="random", seed=4)
    assert choose_readout(drawn, known, examples()) == ClassificationHead(2, "random", seed=4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"readout": "prompt", "label_words": ("a", "b", "c")},
            "got 3 label words for the 2 labels 0, 1, expected",
        ),
        (
            {"readout": "prototypes", "prototypes": ("A.",)},
            "got 1 prototypes for the 2 labels .* correct --prototypes",
        ),
        ({"readout": "prompt", "template": "no fields"}, "got .*template"),
    ],
    ids=str,
)
def test_words_that_do_not_match_the_labels_are_refused(
    folder: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        choose_readout(small_settings(folder, **settings), task("sst2"), examples())


@pytest.mark.parametrize("readout", ["prompt", "prototypes"])
def test_a_text_readout_is_not_for_images(folder: Path, readout: Any) -> None:
    with pytest.raises(InputError, match=rf"got --readout {readout} for image data, .* use --readout head"):
        choose_readout(small_settings(folder, readout=readout), task("sst2"), examples("image"))


def test_scores_are_accuracy_and_mean_cross_entropy() -> None:
    z = torch.tensor([[0.0, 0.0], [3.0, 1.0], [0.0, 2.0]])
    found = scores(z, (1, 0, 0), "test")
    losses = [torch.log(torch.tensor(2.0)), torch.tensor(-2.0).exp().log1p(), torch.tensor(2.0).exp().log1p()]
    assert found["test_accuracy"] == pytest.approx(1 / 3)
    assert found["test_loss"] == pytest.approx(float(sum(losses)) / 3, rel=1e-6)


def test_where_every_example_is_drawn_there_is_no_test_set(folder: Path, tmp_path: Path) -> None:
    data = write_sentences(tmp_path / "data.csv", 8)
    prepared = prepare(small_settings(folder, data=str(data), shots=4))
    assert prepared.splits.test is None
    assert prepared.test is None
    assert len(prepared.problem.y) == 8


def test_the_labels_and_the_network_are_on_the_device(folder: Path, device: torch.device) -> None:
    prepared = prepare(small_settings(folder, device=str(device)))
    assert prepared.problem.f0.device.type == prepared.problem.y.device.type == device.type


def test_a_checkpoint_that_is_none_is_told(folder: Path) -> None:
    settings = small_settings(folder, model=str(checkpoint(folder) / "nothing"))
    with pytest.raises(InputError, match="which does not exist"):
        prepare(settings)
