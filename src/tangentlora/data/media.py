"""Decoding images and recordings: RGB images, and mono waveforms at one sampling rate."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, TypeAlias, cast, runtime_checkable

from tangentlora.data.examples import Examples
from tangentlora.data.pictures import as_rgb
from tangentlora.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float
    from numpy.typing import NDArray
    from PIL.Image import Image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
_LOUDEST = 2.0  # twice full scale: more is no sound in floats but whole numbers that nobody divided

Rate: TypeAlias = int | Callable[[], int] | None
"""A sampling rate in hertz, what tells it once recordings are met, or None for the recordings' own."""


@runtime_checkable
class Encoded(Protocol):
    """A file, or something like one, whose `str` is its name."""

    def read_bytes(self) -> bytes: ...


def decode_images(examples: Examples) -> Examples:
    """Return examples of encoded images with the images decoded; see :func:`read_image`."""
    sources = cast("Sequence[Encoded]", examples.inputs)
    return replace(examples, inputs=tuple(read_image(source) for source in sources))


def decode_waveforms(examples: Examples, sampling_rate: Rate) -> Examples:
    """Return examples of encoded recordings as waveforms at `sampling_rate` hertz (None: their common rate).

    What is done to them, mixing channels and resampling, stands in the examples' `notes`. Raises InputError
    when the rates differ and none was asked for, and as :func:`read_waveform` does.
    """
    sources = cast("Sequence[Encoded]", examples.inputs)
    recordings = [read_waveform(source) for source in sources]
    rates = {rate: source for source, (_, rate, _) in zip(sources, recordings, strict=True)}
    target = sampling_rate() if callable(sampling_rate) else sampling_rate
    if target is None:
        if len(rates) > 1:
            places = ", ".join(f"{rate} Hz in {source}" for rate, source in sorted(rates.items()))
            raise InputError(
                f"the recordings differ in sampling rate ({places}); ask for one sampling rate "
                "(sampling_rate=), to which all are then resampled"
            )
        target = next(iter(rates), None)
    waveforms = tuple(
        resample(waveform, rate, rate if target is None else target) for waveform, rate, _ in recordings
    )
    notes = _treatment([rate for _, rate, _ in recordings], [count for *_, count in recordings], target)
    return replace(examples, inputs=waveforms, sampling_rate=target, notes=(*examples.notes, *notes))


def _treatment(rates: Sequence[int], channels: Sequence[int], target: int | None) -> list[str]:
    """Return a sentence for each thing that was done to recordings unasked."""
    said, n = [], len(rates)
    mixed = sum(count > 1 for count in channels)
    if mixed:
        said.append(f"{mixed} of {n} recordings have several channels, whose mean is heard.")
    others = sorted(set(rates) - {target})
    if others:
        count = sum(rate != target for rate in rates)
        of = " and ".join(map(str, others))
        said.append(f"{count} of {n} recordings were sampled at {of} Hz and are resampled to {target} Hz.")
    return said


def read_image(source: Encoded) -> Image:
    """Return the image in RGB, turned upright as its metadata says; see `as_rgb`.

    Raises InputError when the file cannot be decoded, as `as_rgb` does, and when Pillow is absent.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError(
            f"the image {source} cannot be read because Pillow is not installed; install tangentlora[media]"
        ) from error
    try:
        with Image.open(io.BytesIO(source.read_bytes())) as image:
            return as_rgb(image, str(source))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot decode the image {source} ({error}); replace or remove the file") from error


def read_waveform(source: Encoded) -> tuple[Float[NDArray[np.float32], " samples"], int, int]:
    """Return a recording's waveform in float32, channels averaged, its sampling rate in hertz, its channels.

    Samples lie in [−1, 1], but that floating-point files may exceed it a little, as mixing programs let them.
    WAV needs no further package; other formats are read by soundfile. Raises InputError when the file cannot
    be decoded or holds no finite samples, when they are no fractions of full scale, and when soundfile is
    needed and absent.
    """
    import numpy as np

    try:
        raw = source.read_bytes()
        samples, rate = _read_wav(raw) if raw[:4] in (b"RIFF", b"RIFX", b"RF64") else _read_other(raw, source)
    except InputError:
        raise
    except Exception as error:  # broken files make the decoders fail in half a dozen ways
        raise InputError(
            f"cannot decode the recording {source} ({error}); replace or remove the file"
        ) from error
    waveform = samples if samples.ndim == 1 else samples.mean(axis=1)
    if not waveform.size or not np.isfinite(waveform).all():
        raise InputError(
            f"the recording {source} holds no samples, or some that are not finite; remove the file"
        )
    largest = float(np.abs(samples).max())
    if largest > _LOUDEST:
        raise InputError(
            f"the recording {source} has samples up to {largest:g}, which look like whole numbers kept as "
            "floats; expected fractions of full scale, from -1 to 1: divide them by the largest whole number "
            "of their kind, such as 32768"
        )
    return waveform.astype(np.float32), rate, 1 if samples.ndim == 1 else samples.shape[1]


def resample(
    waveform: Float[NDArray[np.float32], " samples"], rate: int, target: int
) -> Float[NDArray[np.float32], " resampled"]:
    """Return a waveform sampled at `rate` hertz as it would be at `target` hertz.

    The result has ⌈samples·target/rate⌉ samples. A linear-phase low-pass filter at the lower of the two
    Nyquist frequencies keeps time and prevents aliasing. Raises InputError when target < 1.
    """
    import numpy as np
    from scipy.signal import resample_poly

    if target < 1:
        raise InputError(f"got a sampling rate of {target} Hz; expected a positive number, such as 16000")
    if target == rate:
        return waveform
    common = math.gcd(rate, target)
    resampled = resample_poly(waveform.astype(np.float64), target // common, rate // common)
    return cast("NDArray[np.float32]", resampled.astype(np.float32))


def _read_wav(raw: bytes) -> tuple[NDArray[np.float64], int]:
    """Decode PCM and float WAV; integers are divided by their range, and 8-bit ones are unsigned."""
    import numpy as np
    from scipy.io import wavfile

    with warnings.catch_warnings():
        warnings.simplefilter("error", wavfile.WavFileWarning)  # a file that ends too soon
        warnings.filterwarnings("ignore", "Chunk", wavfile.WavFileWarning)  # titles and comments
        rate, samples = wavfile.read(io.BytesIO(raw))
    scaled = samples.astype(np.float64)
    if np.issubdtype(samples.dtype, np.integer):
        half = 2.0 ** (8 * samples.dtype.itemsize - 1)
        scaled = scaled / half - (1.0 if np.issubdtype(samples.dtype, np.unsignedinteger) else 0.0)
    return scaled, rate


def _read_other(raw: bytes, source: Encoded) -> tuple[NDArray[np.float64], int]:
    try:
        import soundfile
    except ImportError as error:
        raise InputError(
            f"the recording {source} is not WAV and soundfile is not installed; install tangentlora[media] "
            f"or convert the recordings to WAV"
        ) from error
    samples, rate = soundfile.read(io.BytesIO(raw), dtype="float64")
    return samples, rate
