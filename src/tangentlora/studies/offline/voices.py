"""Synthesised words: a voice and noise, shaped by formants that glide from sound to sound.

A source-filter model: pulses at a gliding pitch, and noise, pass through a filter that changes every 5 ms.
The filter of the voice is a product of three resonances, |H(f)| = Π_j 1/√((1 − (f/F_j)²)² + (f B_j/F_j²)²);
that of the noise is a band around a centre. Frequencies are in hertz, durations in seconds. The figures are
rounded textbook values for English sounds; the words are none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.signal import istft, stft

RATE = 8_000
_HOP, _WINDOW = 40, 160
_FREQUENCIES = np.fft.rfftfreq(_WINDOW, 1 / RATE)


@dataclass(frozen=True)
class Phone:
    """One sound: formants, loudness of voice and of noise, centre and width of the noise, duration.

    Noise of width 0 passes through the formants instead, as breath does.
    """

    formants: tuple[float, float, float]
    voice: float
    noise: float = 0.0
    centre: float = 0.0
    width: float = 0.0
    duration: float = 0.08


_LOW = (300.0, 1500.0, 2500.0)

# Named as in the ARPAbet
VOWELS = {
    "iy": Phone((280, 2250, 2900), 1.0, duration=0.12),
    "ih": Phone((400, 1950, 2550), 1.0, duration=0.09),
    "eh": Phone((550, 1800, 2480), 1.0, duration=0.11),
    "ae": Phone((690, 1650, 2420), 1.0, duration=0.14),
    "aa": Phone((730, 1100, 2440), 1.0, duration=0.14),
    "ao": Phone((570, 840, 2410), 1.0, duration=0.13),
    "uh": Phone((440, 1020, 2240), 1.0, duration=0.09),
    "uw": Phone((300, 870, 2240), 1.0, duration=0.12),
    "ah": Phone((640, 1190, 2390), 1.0, duration=0.10),
    "er": Phone((490, 1350, 1690), 1.0, duration=0.13),
}
CONSONANTS = {
    "w": Phone((300, 650, 2200), 0.6, duration=0.06),
    "y": Phone((270, 2250, 3050), 0.6, duration=0.06),
    "r": Phone((340, 1100, 1450), 0.6, duration=0.07),
    "l": Phone((360, 1250, 2750), 0.5, duration=0.07),
    "n": Phone((250, 1500, 2500), 0.3, duration=0.08),
    "m": Phone((250, 1000, 2200), 0.3, duration=0.08),
    "s": Phone(_LOW, 0.0, 0.3, 3700, 500, 0.12),
    "z": Phone(_LOW, 0.2, 0.2, 3700, 500, 0.09),
    "sh": Phone(_LOW, 0.0, 0.4, 2600, 500, 0.12),
    "f": Phone(_LOW, 0.0, 0.06, 2200, 2500, 0.10),
    "v": Phone((280, 1200, 2300), 0.25, 0.03, 2200, 2500, 0.06),
    "th": Phone(_LOW, 0.0, 0.05, 3200, 1500, 0.09),
    "h": Phone((550, 1500, 2500), 0.0, 0.25, 0, 0, 0.06),
}
# A stop is a silence and then a burst; a voiced one murmurs through its silence
_SILENCE, _MURMUR = Phone(_LOW, 0.0, duration=0.05), Phone((250, 1300, 2300), 0.1, duration=0.04)
STOPS = {
    "t": (_SILENCE, Phone(_LOW, 0.0, 0.5, 3400, 700, 0.03)),
    "k": (_SILENCE, Phone(_LOW, 0.0, 0.4, 1900, 500, 0.035)),
    "p": (_SILENCE, Phone(_LOW, 0.0, 0.25, 800, 600, 0.025)),
    "d": (_MURMUR, Phone((300, 1700, 2600), 0.3, 0.3, 3200, 800, 0.02)),
    "g": (_MURMUR, Phone((300, 1900, 2300), 0.3, 0.25, 1800, 600, 0.025)),
    "b": (_MURMUR, Phone((300, 1000, 2200), 0.3, 0.15, 700, 600, 0.02)),
}
PHONES = (*VOWELS, *CONSONANTS, *STOPS)


@dataclass(frozen=True)
class Speaker:
    """A pitch, a length of the vocal tract (1 is average; longer means lower formants), and a colour.

    `tilt` is in decibels per octave above 500 Hz, `breath` the noise in the voice.
    """

    pitch: float
    tract: float
    tilt: float
    breath: float
    tempo: float

    def traits(self) -> list[float]:
        """Return what can be heard of the speaker in every word, each between about −1 and 1."""
        return [np.log2(self.pitch / 140), 5 * (self.tract - 1), (self.tilt + 6) / 4, 5 * self.breath - 1]


def draw_speaker(draw: np.random.Generator) -> Speaker:
    """Return a random speaker; a high voice tends to come with a short vocal tract."""
    height = draw.uniform(-1, 1)
    return Speaker(
        pitch=140 * 2 ** (0.7 * height + draw.uniform(-0.3, 0.3)),
        tract=1 - 0.13 * height + draw.uniform(-0.07, 0.07),
        tilt=draw.uniform(-10, -2),
        breath=draw.uniform(0.0, 0.4),
        tempo=draw.uniform(0.65, 1.25),
    )


def draw_words(n: int, seed: int) -> list[tuple[str, ...]]:
    """Return `n` different words: one or two vowels with consonants before, between or after."""
    draw = np.random.default_rng(seed)
    onsets = [*CONSONANTS, *STOPS]
    words: dict[tuple[str, ...], None] = {}
    while len(words) < n:
        word: list[str] = []
        for syllable in range(1 + int(draw.random() < 0.4)):
            if syllable or draw.random() < 0.8:
                word.append(str(draw.choice(onsets)))
                if word[-1] not in "rlwy" and draw.random() < 0.15:
                    word.append(str(draw.choice(["r", "w", "l"])))
            word.append(str(draw.choice(list(VOWELS))))
        if draw.random() < 0.5:
            word.append(str(draw.choice(["n", "m", "s", "z", "f", "v", "t", "k", "d", "l"])))
        if len(word) > 1:
            words[tuple(word)] = None
    return list(words)


def say(
    word: tuple[str, ...], speaker: Speaker, draw: np.random.Generator
) -> tuple[Float[NDArray[np.float32], " samples"], list[tuple[str, float]]]:
    """Return a rendering of a word at 8 kHz, of peak 0.9, and the end of each of its sounds in seconds."""
    phones, ends = _stretch(word, speaker, draw)
    spans = np.array([phone.duration for phone in phones])
    frames = np.maximum(1, np.rint(spans * RATE / _HOP).astype(int))
    glide = float(draw.uniform(2.0, 4.0))

    def track(values: list[float], sigma: float) -> NDArray[np.float64]:
        steps = np.repeat(np.array(values, dtype=float), frames)
        smooth: NDArray[np.float64] = gaussian_filter1d(steps, sigma, mode="nearest")
        return smooth

    formants = np.stack([track([p.formants[j] for p in phones], glide) for j in range(3)])
    formants *= (1 + 0.05 * draw.standard_normal((3, 1))) / speaker.tract
    samples = int(frames.sum()) * _HOP
    voiced = _shape(_pulses(samples, speaker, draw), track([p.voice for p in phones], 1.5), samples)
    breath = _shape(draw.standard_normal(samples), track([p.noise for p in phones], 0.7), samples)
    airy = _shape(draw.standard_normal(samples), track([p.voice for p in phones], 1.5), samples)
    banded = np.repeat([p.width > 0 for p in phones], frames).astype(float)
    spread = np.repeat([max(p.width, 1.0) for p in phones], frames)
    centres = np.repeat([p.centre for p in phones], frames) / np.sqrt(speaker.tract)

    def spectrum(signal: NDArray[np.float64]) -> NDArray[np.complex128]:
        frames: NDArray[np.complex128] = stft(signal, nperseg=_WINDOW, noverlap=_WINDOW - _HOP)[2]
        return frames[:, : len(banded)]

    band = np.exp(-0.5 * ((_FREQUENCIES[:, None] - centres) / spread) ** 2)
    resonance = _resonances(formants)
    octaves = np.log2(np.maximum(_FREQUENCIES, 500) / 500)
    colour = 10 ** (speaker.tilt * octaves / 20)[:, None]
    hiss = spectrum(breath)
    whole = resonance * colour * (spectrum(voiced) + 0.3 * speaker.breath * spectrum(airy))
    whole += hiss * np.where(banded > 0, band, resonance)
    wave = istft(whole, nperseg=_WINDOW, noverlap=_WINDOW - _HOP)[1]
    wave = wave / max(float(np.abs(wave).max()), 1e-9)
    wave = wave + 10 ** draw.uniform(-3, -1.3) * 0.3 * draw.standard_normal(len(wave))
    return (0.9 * wave / np.abs(wave).max()).astype(np.float32), ends


def _stretch(
    word: tuple[str, ...], speaker: Speaker, draw: np.random.Generator
) -> tuple[list[Phone], list[tuple[str, float]]]:
    """Return the sounds with their durations as spoken, and when each of the word's sounds ends."""
    phones: list[Phone] = []
    ends: list[tuple[str, float]] = []
    now = 0.0
    for name in word:
        parts = STOPS[name] if name in STOPS else ((VOWELS | CONSONANTS)[name],)
        for p in parts:
            duration = p.duration / speaker.tempo * float(draw.uniform(0.75, 1.35))
            loud = float(draw.uniform(0.7, 1.3))
            phones.append(Phone(p.formants, loud * p.voice, loud * p.noise, p.centre, p.width, duration))
            now += duration
        ends.append((name, now))
    return phones, ends


def _pulses(samples: int, speaker: Speaker, draw: np.random.Generator) -> NDArray[np.float64]:
    """Return glottal pulses whose pitch falls or rises in a line and trembles a little."""
    time = np.linspace(0, 1, samples)
    bend, wobble = draw.uniform(-0.5, 0.25), draw.uniform(0, 0.02)
    pitch = speaker.pitch * 2 ** (bend * (time - 0.5) + wobble * np.sin(2 * np.pi * 4 * time))
    cycles = np.floor(np.cumsum(pitch) / RATE + draw.random())
    power = np.sqrt(RATE / speaker.pitch)  # 1 per sample on average, at every pitch
    return np.asarray(power * np.diff(cycles, prepend=cycles[0]))


def _shape(signal: NDArray[np.float64], loudness: NDArray[np.float64], samples: int) -> NDArray[np.float64]:
    return signal * np.repeat(loudness, _HOP)[:samples]


def _resonances(formants: Float[NDArray[np.float64], "3 T"]) -> Float[NDArray[np.float64], "F T"]:
    f = _FREQUENCIES[:, None, None] / formants[None]
    damping = (50 + 0.06 * formants) / formants
    return np.asarray(np.prod(1 / np.sqrt((1 - f**2) ** 2 + (f * damping) ** 2), axis=1))
