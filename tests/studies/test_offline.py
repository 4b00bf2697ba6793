"""The project's own networks: made whole, made once, the same from the same seed, and opened as any other."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile
from torch import nn

from tangentlora.data import load_splits
from tangentlora.errors import InputError
from tangentlora.solvers.certified import Certified
from tangentlora.studies.offline import Made, make_digits, make_sounds
from tangentlora.studies.offline.made import make_once
from tangentlora.studies.offline.training import train
from tangentlora.studies.offline.voices import PHONES, RATE, Speaker, draw_speaker, draw_words, say
from tangentlora.studies.prepare import prepare
from tangentlora.studies.settings import Settings
from tangentlora.theory.certificate import certify

Make = Callable[..., Made]
RECORDINGS = Path(__file__).parents[2] / "../shared/data/spoken-digits"
PLAIN = Speaker(pitch=120, tract=1.0, tilt=-4, breath=0.0, tempo=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("offline")


@pytest.fixture(scope="module")
def digits(folder: Path) -> Made:
    return make_digits(folder / "digits", size="tiny")


@pytest.fixture(scope="module")
def sounds(folder: Path) -> Made:
    return make_sounds(folder / "sounds", size="tiny")


def contents(made: Made) -> dict[str, bytes]:
    return {
        str(path.relative_to(root.parent)): path.read_bytes()
        for root in (made.model, made.data)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def classes(root: Path) -> dict[str, int]:
    return {path.name: len(list(path.iterdir())) for path in sorted(root.iterdir())}


@pytest.mark.parametrize(("name", "make"), [("digits", make_digits), ("sounds", make_sounds)])
def test_the_same_seed_gives_the_same_bytes(
    folder: Path, name: str, make: Make, request: pytest.FixtureRequest
) -> None:
    first: Made = request.getfixturevalue(name)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 - what others draw must not matter
    again = make(folder / f"{name}-again", size="tiny")
    assert again.accuracy == first.accuracy
    assert contents(again) == contents(first)
    other = make(folder / f"{name}-again", size="tiny", seed=1)  # other settings: made anew
    weights = "model/model.safetensors"
    assert contents(other)[weights] != contents(first)[weights]
    assert not list(folder.glob(".*"))


def test_digits_are_split_into_those_learnt_and_those_laid_out(digits: Made) -> None:
    train_set, test_set = classes(digits.data / "train"), classes(digits.data / "test")
    assert list(train_set) == list(test_set) == ["5", "6", "7", "8", "9"]
    assert min(train_set.values()) >= 130
    assert min(test_set.values()) >= 43
    # scikit-learn's own counts of 5 to 9
    assert [train_set[d] + test_set[d] for d in train_set] == [182, 181, 179, 174, 180]
    assert 0 <= digits.accuracy <= 1


def test_an_image_holds_the_pixels_of_the_set(digits: Made) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    known = load_digits()
    path = next((digits.data / "test" / "7").iterdir())
    i = int(path.stem)
    assert known.target[i] == 7
    with Image.open(path) as image:
        assert (
            np.abs(np.asarray(image, dtype=float) * 16 / 255 - known.images[i]).max() < 0.04
        )  # half of 1/255 of 16


def test_recordings_of_new_words(sounds: Made) -> None:
    words = classes(sounds.data / "train")
    assert classes(sounds.data / "test") == dict.fromkeys(words, 6)
    assert list(words.values()) == [12] * 4
    assert all(path.name.split("_")[0] == path.parent.name for path in sounds.data.rglob("*.wav"))
    rate, wave = wavfile.read(next(sounds.data.rglob("*.wav")))
    assert rate == RATE
    assert 0.85 < np.abs(wave).max() / 32768 < 0.95


@pytest.mark.parametrize("name", ["digits", "sounds"])
def test_a_made_network_goes_the_way_of_any_other(
    folder: Path, name: str, request: pytest.FixtureRequest
) -> None:
    made: Made = request.getfixturevalue(name)
    prepared = prepare(
        Settings(
            model=str(made.model),
            data=str(made.data),
            shots=3,
            test_limit=10,
            lam=0.03,
            tangent_dir=folder / "tangents",
        )
    )
    assert len(prepared.network.fingerprint) == 64
    assert prepared.targets[0].shape[0] in (64, 96)
    assert certify(prepared.problem, Certified().solve(prepared.problem)).certified


def test_what_is_there_is_used_again(digits: Made, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # nothing can be made now
    assert make_digits(folder / "digits", size="tiny") == digits


def test_digits_need_scikit_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r"pip install 'tangentlora\[studies\]'"):
        make_digits(tmp_path / "digits", size="tiny")
    assert not list(tmp_path.iterdir())


def fake(partial: Path) -> float:
    (partial / "model").mkdir()
    (partial / "model" / "model.safetensors").write_bytes(b"weights")
    (partial / "data" / "train").mkdir(parents=True)
    return 0.5


def failing(partial: Path) -> float:
    fake(partial)
    raise RuntimeError("interrupted")


def test_made_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="interrupted"):
        make_once(tmp_path / "deep" / "it", {"seed": 0}, failing)
    assert not list((tmp_path / "deep").iterdir())
    made = make_once(tmp_path / "deep" / "it", {"seed": 0}, fake)
    assert made.accuracy == 0.5
    with pytest.raises(RuntimeError, match="interrupted"):  # a failure leaves the old one
        make_once(tmp_path / "deep" / "it", {"seed": 1}, failing)
    assert make_once(tmp_path / "deep" / "it", {"seed": 0}, failing) == made


def test_a_made_folder_without_its_weights_is_made_again(tmp_path: Path) -> None:
    made = make_once(tmp_path / "it", {"seed": 0}, fake)
    (made.model / "model.safetensors").unlink()
    make_once(tmp_path / "it", {"seed": 0}, fake)
    assert (made.model / "model.safetensors").is_file()


@pytest.mark.parametrize("card", [None, "no json", "[]"])
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, card: str | None) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    if card is not None:
        (tmp_path / "made.json").write_text(card)
    with pytest.raises(InputError, match="which holds something else, expected a new or empty one"):
        make_once(tmp_path, {"seed": 0}, fake)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_training_finds_a_known_optimum() -> None:
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    w = torch.tensor([1.0, -2.0, 0.5])
    line = nn.Linear(3, 1).eval().requires_grad_(False)

    def loss(generator: torch.Generator) -> torch.Tensor:
        assert line.training
        index = torch.randint(50, (20,), generator=generator)
        return (line(x[index])[:, 0] - x[index] @ w - 3).square().mean()

    train(line, loss, steps=500, learning_rate=0.05, seed=0, desc="line", progress=False)
    torch.testing.assert_close(line.weight[0].detach(), w, atol=1e-2, rtol=0)
    assert not line.training


def test_words_are_different_and_pronounceable() -> None:
    words = draw_words(60, 0)
    assert len(set(words)) == 60
    assert draw_words(20, 0) == words[:20]
    assert {phone for word in words for phone in word} <= set(PHONES)


def test_a_voice_has_its_pitch_and_its_formants() -> None:
    def spectrum(word: tuple[str, ...], speaker: Speaker) -> np.ndarray:
        waves = [say(word, speaker, np.random.default_rng(i))[0] for i in range(20)]
        return sum(np.abs(np.fft.rfft(wave, n=8192)) ** 2 for wave in waves)

    f = np.fft.rfftfreq(8192, 1 / RATE)

    def centre(power: np.ndarray, low: float, high: float) -> float:
        inside = (f > low) & (f < high)
        return float((f * power)[inside].sum() / power[inside].sum())

    ah, ee = spectrum(("aa",), PLAIN), spectrum(("iy",), PLAIN)
    assert centre(ah, 150, 1500) > centre(ee, 150, 1500) + 300  # first formant: 730 against 280 Hz
    assert centre(ee, 1500, 3500) > centre(ah, 1500, 3500)
    long = Speaker(pitch=120, tract=1.2, tilt=-4, breath=0.0, tempo=0.5)
    assert centre(spectrum(("aa",), long), 400, 1800) < centre(ah, 400, 1800) - 50
    wave, _ = say(("aa",), PLAIN, np.random.default_rng(0))
    middle = wave[len(wave) // 4 : -len(wave) // 4]
    echo = np.correlate(middle, middle, "full")[len(middle) :]
    assert abs(RATE / (40 + 1 + echo[40:100].argmax()) - 120) < 15


def test_a_hiss_is_high_and_a_stop_begins_in_silence() -> None:
    wave, ends = say(("s", "aa"), PLAIN, np.random.default_rng(0))
    assert [phone for phone, _ in ends] == ["s", "aa"]
    cut = round(ends[0][1] * RATE)
    crossings = [np.abs(np.diff(np.sign(part))).mean() for part in (wave[:cut], wave[cut:])]
    assert crossings[0] > 2 * crossings[1]
    wave, ends = say(("t", "aa"), PLAIN, np.random.default_rng(0))
    assert np.abs(wave[: RATE // 20]).max() < 0.3 * np.abs(wave).max()


def test_the_traits_of_speakers_are_of_one_size() -> None:
    draw = np.random.default_rng(0)
    traits = np.array([draw_speaker(draw).traits() for _ in range(500)])
    assert np.abs(traits).max() < 1.6
    assert traits.std(axis=0).min() > 0.3


def test_made_recordings_make_a_task_of_speakers_too(sounds: Made) -> None:
    splits = load_splits(str(sounds.data), label_pattern="_(.+?)_")
    assert splits.task.labels == tuple(f"s{i}" for i in range(6))


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the recordings are not part of the project")
def test_real_recordings_make_a_task_of_six_classes() -> None:
    splits = load_splits(str(RECORDINGS), label_pattern="_(.+?)_", shots=16)
    assert len(splits.task.labels) == 6
    assert set(splits.train.counts().values()) == {16}
    assert splits.test is not None
    assert min(splits.test.counts().values()) >= 32
