"""Folders of images and of recordings: classes, parts, decoding, resampling, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.io import wavfile

from tangentlora.data import check_data, load_splits
from tangentlora.data.media import read_waveform, resample
from tangentlora.errors import InputError

DIGITS = Path(__file__).parents[2] / "../shared/data/spoken-digits"


def tone(hertz: float, rate: int, seconds: float = 0.25) -> NDArray[np.float64]:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def write_wav(path: Path, samples: NDArray[np.float64], rate: int = 8000) -> Path:
    """Write samples in [−1, 1] as 16-bit PCM."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wavfile.write(path, rate, np.round(samples * 32767).astype(np.int16))
    return path


def whole_wav() -> bytes:
    file = io.BytesIO()
    wavfile.write(file, 8000, np.zeros(400, dtype=np.int16))
    return file.getvalue()


WHOLE = whole_wav()


def write_image(path: Path, colour: str, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> Path:
    image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.new(mode, size, colour).save(path)
    return path


@pytest.mark.skipif(not DIGITS.is_dir(), reason="the spoken digits are not here")
def test_real_recordings_load_and_double_their_rate() -> None:
    plain, doubled = load_splits(str(DIGITS)), load_splits(str(DIGITS), sampling_rate=16000)
    assert plain.test is not None
    assert plain.train.counts() == dict.fromkeys(("one", "three", "two", "zero"), 36)
    assert plain.test.counts() == dict.fromkeys(("one", "three", "two", "zero"), 48)
    assert (plain.train.modality, plain.train.sampling_rate, doubled.train.sampling_rate) == (
        "audio",
        8000,
        16000,
    )
    for wave, twice in zip(plain.train.inputs, doubled.train.inputs, strict=True):
        assert wave.dtype == twice.dtype == np.float32
        assert len(twice) == 2 * len(wave)
        # A half-band filter leaves the original samples where they were, but for its small ripple.
        assert np.abs(twice[::2] - wave).max() < 0.02


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    for i, name in enumerate(("high", "low")):
        for k in range(4):
            write_wav(tmp_path / name / f"{k}.wav", tone(400 * (2 - i), 8000))
    return tmp_path


def test_class_folders_without_parts_are_divided(sounds: Path) -> None:
    splits = load_splits(str(sounds), test_fraction=0.25)
    assert splits.test is not None
    assert splits.train.counts() == {"high": 3, "low": 3}
    assert splits.test.counts() == {"high": 1, "low": 1}
    assert splits.task.labels == splits.task.label_words == ("high", "low")
    shots = load_splits(str(sounds), shots=1)
    assert shots.test is not None
    assert shots.dev is not None
    assert [len(part) for part in (shots.train, shots.dev, shots.test)] == [2, 2, 4]


def test_only_what_is_drawn_gets_decoded(sounds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counted(source: Path) -> tuple[NDArray[np.float32], int, int]:
        read.append(str(source))
        return read_waveform(source)

    monkeypatch.setattr("tangentlora.data.media.read_waveform", counted)
    load_splits(str(sounds), shots=1, test_limit=1)
    assert len(set(read)) == len(read) == 5  # of eight: 2 to train on, 2 to choose by, 1 to test on


@pytest.mark.parametrize(("rate", "target"), [(8000, 16000), (16000, 8000), (44100, 16000)])
def test_resampling_keeps_a_tone_where_it_was(rate: int, target: int) -> None:
    heard = resample(tone(400, rate).astype(np.float32), rate, target)
    expected = tone(400, target)
    assert heard.dtype == np.float32
    assert len(heard) == len(expected)
    inside = slice(target // 50, -target // 50)  # away from the ends, where the filter sees silence
    assert np.abs(heard - expected)[inside].max() < 2e-3


def test_resampling_to_a_lower_rate_removes_what_would_alias() -> None:
    heard = resample(tone(6000, 16000).astype(np.float32), 16000, 8000)
    assert np.abs(heard)[160:-160].max() < 5e-3


def test_a_rate_that_is_none_is_refused(sounds: Path) -> None:
    with pytest.raises(InputError, match="got a sampling rate of 0 Hz; expected a positive number"):
        load_splits(str(sounds), sampling_rate=0)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_every_sample_format_gives_the_same_waveform(dtype: type, tmp_path: Path) -> None:
    wave = tone(400, 8000)
    samples = wave
    if np.issubdtype(dtype, np.integer):
        half = 2.0 ** (8 * np.dtype(dtype).itemsize - 1)
        samples = wave * half + (half if dtype is np.uint8 else 0)
    wavfile.write(tmp_path / "wave.wav", 8000, samples.astype(dtype))
    heard, rate, _ = read_waveform(tmp_path / "wave.wav")
    assert rate == 8000
    assert np.abs(heard - wave).max() < (0.01 if dtype is np.uint8 else 1e-4)


def test_channels_are_averaged_and_comments_in_the_file_do_no_harm(tmp_path: Path) -> None:
    left, right = tone(400, 8000), np.zeros(2000)
    path = write_wav(tmp_path / "stereo.wav", np.stack([left, right], axis=1))
    raw = path.read_bytes()
    path.write_bytes(raw + b"note\x04\x00\x00\x00abcd")
    assert np.abs(read_waveform(path)[0] - left / 2).max() < 1e-4


def test_recordings_of_different_rates_need_a_rate_to_agree_on(sounds: Path) -> None:
    write_wav(sounds / "low" / "9.wav", tone(200, 16000), 16000)
    with pytest.raises(
        InputError, match=r"differ in sampling rate \(8000 Hz in .*, 16000 Hz in .*9.wav\); ask for one"
    ):
        load_splits(str(sounds), test_fraction=0.0)
    splits = load_splits(str(sounds), test_fraction=0.0, sampling_rate=8000)
    assert {len(wave) for wave in splits.train.inputs} == {2000}


def test_a_rate_is_asked_for_once_recordings_are_met(sounds: Path) -> None:
    write_wav(sounds / "low" / "9.wav", tone(200, 16000), 16000)
    splits = load_splits(str(sounds), sampling_rate=lambda: 4000)
    assert splits.train.sampling_rate == 4000
    assert {len(wave) for wave in splits.train.inputs} == {1000}
    assert check_data(splits).warnings()[0] == (
        "train: 9 of 9 recordings were sampled at 8000 and 16000 Hz and are resampled to 4000 Hz."
    )

    def never() -> int:
        raise AssertionError("no recording was met")

    assert load_splits("support", shots=2, sampling_rate=never).train.modality == "text"


def test_channels_that_are_averaged_are_told(sounds: Path) -> None:
    assert check_data(load_splits(str(sounds))).notes == ()
    write_wav(sounds / "low" / "9.wav", np.stack([tone(200, 8000), tone(300, 8000)], axis=1))
    check = check_data(load_splits(str(sounds)))
    assert check.notes == ("train: 1 of 9 recordings have several channels, whose mean is heard.",)
    assert f"  ! {check.notes[0]}" in check.lines()


@pytest.mark.parametrize(("peak", "whole"), [(1.5, False), (2.5, True), (-32768.0, True)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_whole_numbers_kept_as_floats_are_refused(
    peak: float, whole: bool, dtype: type, tmp_path: Path
) -> None:
    """Floats may exceed full scale a little, as in a mix; numbers that nobody divided are no waveform."""
    path = tmp_path / "wave.wav"
    wavfile.write(path, 8000, np.array([0.0, peak, 0.1]).astype(dtype))
    if not whole:
        assert read_waveform(path)[0][1] == peak
        return
    with pytest.raises(InputError, match=rf"wave.wav has samples up to {abs(peak):g}, which look like whole"):
        read_waveform(path)


def test_parts_of_different_rates_are_refused(sounds: Path, tmp_path: Path) -> None:
    for name in ("high", "low"):
        (tmp_path / "parts" / "train").mkdir(parents=True, exist_ok=True)
        (sounds / name).rename(tmp_path / "parts" / "train" / name)
        write_wav(tmp_path / "parts" / "test" / name / "0.wav", tone(400, 16000), 16000)
    with pytest.raises(InputError, match=r"the test set of .* 16000.* 8000.*ask for one sampling rate"):
        load_splits(str(tmp_path / "parts"))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"RIFF",
        b"RIFF\x10\0\0\0WAVEfmt ",
        b"RIFF\x04\0\0\0WAVE",
        WHOLE[:22] + b"\0\0" + WHOLE[24:],
        WHOLE[:-100],
    ],
)
def test_a_recording_that_cannot_be_decoded_is_named(raw: bytes, sounds: Path) -> None:
    (sounds / "low" / "broken.wav").write_bytes(raw)
    with pytest.raises(InputError, match=r"recording .*broken\.wav"):
        load_splits(str(sounds), test_fraction=0.0)


@pytest.mark.parametrize("samples", [np.zeros(0), np.array([0.0, np.nan])])
def test_a_recording_without_sound_is_named(samples: NDArray[np.float64], tmp_path: Path) -> None:
    wavfile.write(tmp_path / "void.wav", 8000, samples.astype(np.float32))
    with pytest.raises(InputError, match=r"void.wav holds no samples, or some that are not finite"):
        read_waveform(tmp_path / "void.wav")


def test_other_formats_need_soundfile_and_say_so(sounds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    (sounds / "low" / "song.flac").write_bytes(b"fLaC")
    with pytest.raises(InputError, match=r"song.flac is not WAV .* install tangentlora\[media\] or convert"):
        load_splits(str(sounds), test_fraction=0.0)


def test_other_formats_are_read_where_soundfile_is_installed(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "wave.flac", tone(400, 8000), 8000)
    heard, rate, _ = read_waveform(tmp_path / "wave.flac")
    assert rate == 8000
    assert np.abs(heard - tone(400, 8000)).max() < 1e-4
    (tmp_path / "wave.flac").write_bytes(b"fLaC and no more")
    with pytest.raises(InputError, match="cannot decode the recording"):
        read_waveform(tmp_path / "wave.flac")


def test_images_come_in_parts_as_rgb(tmp_path: Path) -> None:
    for part in ("train", "validation", "test"):
        write_image(tmp_path / part / "cat" / "1.png", "red")
        write_image(tmp_path / part / "dog" / "1.png", "blue")
    write_image(tmp_path / "train" / "dog" / "2.PNG", "white", mode="L")
    (tmp_path / "train" / "dog" / ".hidden.png").write_bytes(b"")
    (tmp_path / "train" / "dog" / "notes.txt").write_text("not an image")
    splits = load_splits(str(tmp_path))
    assert splits.dev is not None
    assert splits.test is not None
    assert [len(part) for part in (splits.train, splits.dev, splits.test)] == [3, 2, 2]
    assert (splits.train.modality, splits.train.sampling_rate) == ("image", None)
    assert {image.mode for image in splits.train.inputs} == {"RGB"}
    colours = [image.getpixel((0, 0)) for image in splits.train.inputs]
    assert colours == [(255, 0, 0), (0, 0, 255), (255, 255, 255)]
    assert splits.train.labels == (0, 1, 1)


def test_a_validation_folder_without_a_test_folder_is_the_test_set(tmp_path: Path) -> None:
    for part in ("train", "validation"):
        for k in range(3):
            write_image(tmp_path / part / "cat" / f"{k}.png", "red")
            write_image(tmp_path / part / "dog" / f"{k}.png", "blue")
    whole = load_splits(str(tmp_path))
    assert whole.dev is None
    assert whole.test is not None
    assert (len(whole.train), len(whole.test)) == (6, 6)
    few = load_splits(str(tmp_path), shots=1)
    assert few.dev is not None
    assert few.test is not None
    assert [part.counts() for part in (few.train, few.dev, few.test)] == [
        {"cat": 1, "dog": 1},
        {"cat": 1, "dog": 1},
        {"cat": 3, "dog": 3},
    ]


def test_images_need_pillow_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cat", "dog"):
        write_image(tmp_path / name / "1.png", "red")
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(InputError, match=r"1.png cannot be read because .* install tangentlora\[media\]"):
        load_splits(str(tmp_path))


def test_an_image_is_turned_upright(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    photo = image.new("RGB", (6, 4))
    exif = photo.getexif()
    exif[0x0112] = 6  # taken with the camera on its side
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        photo.save(tmp_path / name / "1.jpg", exif=exif)
    assert load_splits(str(tmp_path)).train.inputs[0].size == (4, 6)


def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    write_image(tmp_path / "cat" / "1.png", "red")
    whole = io.BytesIO(write_image(tmp_path / "dog" / "1.png", "red", (64, 64)).read_bytes()).read(60)
    for raw in (b"", b"no image", whole):
        (tmp_path / "dog" / "1.png").write_bytes(raw)
        with pytest.raises(
            InputError, match=r"cannot decode the image .*dog.1\.png .*; replace or remove the file"
        ):
            load_splits(str(tmp_path))


def test_folders_that_are_neither_or_both_are_refused(tmp_path: Path, sounds: Path) -> None:
    write_image(sounds / "low" / "1.png", "red")
    with pytest.raises(InputError, match="holds both images and recordings; expected a train table"):
        load_splits(str(sounds))
    empty = tmp_path / "nothing"
    (empty / "class").mkdir(parents=True)
    with pytest.raises(
        InputError, match="nothing holds no data that can be read for training; expected a train"
    ):
        load_splits(str(empty))


def test_class_folders_must_be_labels(sounds: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"high.0\.wav is of the class 'high', which is no label of task mr; expected one of 0",
    ):
        load_splits(str(sounds), "mr")
    for name in ("high", "low"):
        (tmp_path / "parts" / "train").mkdir(parents=True, exist_ok=True)
        (sounds / name).rename(tmp_path / "parts" / "train" / name)
    write_wav(tmp_path / "parts" / "test" / "middle" / "0.wav", tone(600, 8000))
    with pytest.raises(
        InputError, match="no label of task custom; expected one of high, low: rename or remove"
    ):
        load_splits(str(tmp_path / "parts"))


def test_labels_from_the_names_of_files(tmp_path: Path) -> None:
    for word in ("one", "two"):
        for speaker in ("anna", "bert"):
            for take in range(3):
                part = "test" if take == 2 else "train"
                write_wav(tmp_path / part / word / f"{word}_{speaker}_{take}.wav", tone(600, 8000))
    splits = load_splits(str(tmp_path), label_pattern="_(.+?)_")
    assert splits.task.labels == ("anna", "bert")
    assert splits.train.counts() == {"anna": 4, "bert": 4}
    assert splits.test is not None
    assert splits.test.counts() == {"anna": 2, "bert": 2}
    assert load_splits(str(tmp_path)).task.labels == ("one", "two")


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(", "got the label pattern"),
        ("_.+_", "has no group"),
        ("_(x+)_", r"does not match .*\.wav; expected"),
    ],
)
def test_label_patterns_that_find_nothing_are_refused(sounds: Path, pattern: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        load_splits(str(sounds), label_pattern=pattern)


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    write_wav(tmp_path / "only" / "0.wav", tone(400, 8000))
    with pytest.raises(InputError, match=r"every training example of .* has the label 'only'"):
        load_splits(str(tmp_path))
