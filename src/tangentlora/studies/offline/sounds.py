"""A small wav2vec2 trained on synthesised words, and other synthesised words that it has not heard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from tangentlora.models.small import FRAME, WINDOW, save_wav2vec2, small_wav2vec2
from tangentlora.studies.offline.made import Made, Size, make_once
from tangentlora.studies.offline.training import train
from tangentlora.studies.offline.voices import PHONES, RATE, draw_speaker, draw_words, say

_KNOWN, _NEW = 64, 4  # words to learn, and words for `data`
_LEXICON = 7  # the words are the same for every seed; voices and weights are not
_BATCH = 32
_SPEAKERS = 6  # voices in `data`
_NO_PHONE = -100


@dataclass(frozen=True)
class _Effort:
    """Steps of training, utterances to train on and to judge by, takes of each word and voice in `data`."""

    steps: int
    heard: int
    judged: int
    takes: dict[str, int]


_TAKES = {"train": 6, "test": 8}
_EFFORTS: dict[Size, _Effort] = {
    "tiny": _Effort(2, 32, 16, {"train": 2, "test": 1}),
    "ci": _Effort(150, 2000, 400, _TAKES),
    "full": _Effort(1500, 8000, 400, _TAKES),
}


def make_sounds(folder: Path, *, size: Size = "full", seed: int = 0, progress: bool = False) -> Made:
    """Train the network and write recordings in `folder`, unless they are there already.

    The network learns to tell 64 synthesised words apart in many voices, and at the same time which sound
    every frame of 20 ms is and what the voice is like (pitch, length of the vocal tract, tilt, breath), so
    that what it computes is of use for other words and for speakers; these two further outputs are not kept.
    `accuracy` is that on 400 utterances of the 64 words by further voices. `folder/data/{train,test}/WORD`
    hold 36 and 48 recordings at 8 kHz of each of 4 other words: six voices, six and eight takes. They are
    called `WORD_SPEAKER_TAKE.wav`, as `by_speaker` wants it.

    Raises InputError where `folder` holds something else.
    """

    def make(partial: Path) -> float:
        words = draw_words(_KNOWN + _NEW, _LEXICON)
        _write_recordings(partial / "data", words[_KNOWN:], _EFFORTS[size].takes, seed)
        module, accuracy = _train(words[:_KNOWN], _EFFORTS[size], seed, progress)
        save_wav2vec2(module, partial / "model", RATE)
        return accuracy

    return make_once(folder, {"kind": "sounds", "size": size, "seed": seed}, make)


@dataclass(frozen=True)
class _Heard:
    """Utterances padded with silence: samples, which of them are there, word, sound of every frame, voice.

    A frame after the end has the sound −100, which cross-entropy ignores.
    """

    waves: Float[Tensor, "B S"]
    mask: Int[Tensor, "B S"]
    words: Int[Tensor, " B"]
    phones: Int[Tensor, "B F"]
    traits: Float[Tensor, "B 4"]


@dataclass(frozen=True)
class _Utterance:
    """A word, scaled to mean 0 and variance 1 as the feature extractor does."""

    wave: Float[Tensor, " S"]
    word: int
    phones: Int[Tensor, " F"]
    traits: Float[Tensor, " 4"]


def _pad(utterances: Sequence[_Utterance]) -> _Heard:
    waves = [said.wave for said in utterances]
    return _Heard(
        pad_sequence(waves, batch_first=True),
        pad_sequence([torch.ones_like(wave, dtype=torch.int64) for wave in waves], batch_first=True),
        torch.tensor([said.word for said in utterances]),
        pad_sequence([said.phones for said in utterances], batch_first=True, padding_value=_NO_PHONE),
        torch.stack([said.traits for said in utterances]),
    )


class _Listener(nn.Module):
    """The network with the two further outputs that it is trained on."""

    def __init__(self, network: nn.Module, width: int) -> None:
        super().__init__()
        self.network = network
        self.phones = nn.Linear(width, len(PHONES))
        self.traits = nn.Linear(width, 4)

    def loss(self, heard: _Heard) -> Tensor:
        """Return the cross-entropies of words and of sounds, plus the mean square error of the traits."""
        out = self.network(heard.waves, attention_mask=heard.mask, output_hidden_states=True)
        hidden = out.hidden_states[-1]
        there = (heard.phones != _NO_PHONE).unsqueeze(2)
        voice = (hidden * there).sum(1) / there.sum(1)
        return (
            functional.cross_entropy(out.logits, heard.words)
            + functional.cross_entropy(self.phones(hidden).flatten(0, 1), heard.phones.flatten())
            + functional.mse_loss(self.traits(voice), heard.traits)
        )


def _train(
    words: list[tuple[str, ...]], effort: _Effort, seed: int, progress: bool
) -> tuple[nn.Module, float]:
    """Return the trained network and its accuracy on utterances of the same words by other speakers."""
    draw = np.random.default_rng(seed)
    heard, judged = _hear(words, effort.heard, draw), _hear(words, effort.judged, draw)
    network: Any = small_wav2vec2(len(words), sampling_rate=RATE, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        listener = _Listener(network, network.config.hidden_size)

    def loss(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(heard), (_BATCH,), generator=generator).tolist()
        return listener.loss(_pad([heard[i] for i in index]))

    train(listener, loss, steps=effort.steps, learning_rate=2e-3, seed=seed, desc="sounds", progress=progress)
    right = 0
    with torch.no_grad():
        for start in range(0, len(judged), _BATCH):
            part = _pad(judged[start : start + _BATCH])
            said = network(part.waves, attention_mask=part.mask).logits.argmax(1)
            right += int((said == part.words).sum())
    return network, right / len(judged)


def _hear(words: list[tuple[str, ...]], n: int, draw: np.random.Generator) -> list[_Utterance]:
    """Return n utterances, each of a random word by a speaker of its own."""
    utterances = []
    for word in draw.integers(len(words), size=n).tolist():
        speaker = draw_speaker(draw)
        wave, ends = say(words[word], speaker, draw)
        middles = (np.arange((len(wave) - WINDOW) // FRAME + 1) * FRAME + WINDOW / 2) / RATE
        index = np.searchsorted([end for _, end in ends[:-1]], middles)
        utterances.append(
            _Utterance(
                torch.from_numpy((wave - wave.mean()) / wave.std()),
                word,
                torch.tensor([PHONES.index(name) for name, _ in ends])[index],
                torch.tensor(speaker.traits(), dtype=torch.float32),
            )
        )
    return utterances


def _write_recordings(folder: Path, words: list[tuple[str, ...]], takes: dict[str, int], seed: int) -> None:
    from scipy.io import wavfile

    draw = np.random.default_rng([seed, 1])
    speakers = [draw_speaker(draw) for _ in range(_SPEAKERS)]
    for word in map("".join, words):
        for part in takes:
            (folder / part / word).mkdir(parents=True)
    for phones, (i, speaker) in product(words, enumerate(speakers)):
        word, parts = "".join(phones), [part for part, n in takes.items() for _ in range(n)]
        for take, part in enumerate(parts):
            wave, _ = say(phones, speaker, draw)
            path = folder / part / word / f"{word}_s{i}_{take}.wav"
            wavfile.write(path, RATE, np.rint(32767 * wave).astype(np.int16))
