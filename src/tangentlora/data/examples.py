"""Labelled examples of one modality, and the three sets that an experiment uses."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from tangentlora.data.classification import COMPLETION, Task
from tangentlora.data.reading import Reading
from tangentlora.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    Input: TypeAlias = str | tuple[str, str] | Image | NDArray[np.float32]

Modality: TypeAlias = Literal["text", "image", "audio"]


@dataclass(frozen=True, eq=False)
class Examples:
    """N inputs with labels in 0..K−1, where `label_names[k]` is the label column's value for output k.

    An input is a sentence, a pair of sentences or of prompt and completion, a Pillow image in RGB, or a mono
    waveform, float32 in [−1, 1], at `sampling_rate` hertz. `notes` say what was done to the inputs unasked
    when they were decoded. Raises InputError when inputs and labels differ in
    number or a label is not in 0..K−1.
    """

    inputs: tuple[Input, ...]
    labels: tuple[int, ...]
    label_names: tuple[str, ...]
    modality: Modality = "text"
    sampling_rate: int | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.labels):
            raise InputError(
                f"got {len(self.inputs)} inputs and {len(self.labels)} labels; give every input one label"
            )
        K = len(self.label_names)
        wrong = next((label for label in self.labels if not 0 <= label < K), None)
        if wrong is not None:
            raise InputError(
                f"got the label {wrong} for {K} label names; expected an index from 0 to {K - 1}"
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def select(self, index: Iterable[int]) -> Examples:
        """Return the examples at `index`, in that order."""
        rows = tuple(index)
        inputs = tuple(self.inputs[i] for i in rows)
        return replace(self, inputs=inputs, labels=tuple(self.labels[i] for i in rows))

    @property
    def kind(self) -> tuple[str, int | None, tuple[str, ...]]:
        """Modality, sampling rate and label names: what sets must share to be used together."""
        return self.modality, self.sampling_rate, self.label_names

    def counts(self) -> dict[str, int]:
        """Return the number of examples of every label, zeros included, in the order of the outputs."""
        found = Counter(self.labels)
        return {name: found[k] for k, name in enumerate(self.label_names)}

    def fingerprint(self) -> str:
        """Return a SHA-256, in hexadecimal, over inputs, labels, label names, modality and sampling rate."""
        digest = hashlib.sha256()
        _update(digest, [self.modality, str(self.sampling_rate), *self.label_names])
        for value, label in zip(self.inputs, self.labels, strict=True):
            _update(digest, [str(label), *content_of(value)])
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Splits:
    """The examples to train on, to choose by and to test on, with their task and the source they came from.

    `reading` says how the source was read; it is empty for sets made in Python.
    Raises InputError when a set is empty, the training set knows one label only (unless the task is
    `COMPLETION`, which has no classes), or the sets differ in label names, modality or sampling rate.
    """

    train: Examples
    dev: Examples | None
    test: Examples | None
    task: Task
    source: str
    reading: Reading = field(default_factory=Reading)

    @property
    def parts(self) -> dict[str, Examples]:
        """The sets that there are, by name: train, dev, test."""
        named = {"train": self.train, "dev": self.dev, "test": self.test}
        return {part: examples for part, examples in named.items() if examples is not None}

    def __post_init__(self) -> None:
        for part, examples in self.parts.items():
            if not len(examples):
                raise InputError(f"the {part} set of {self.source} is empty; give it examples or omit it")
            if examples.kind != self.train.kind:
                raise InputError(
                    f"the {part} set of {self.source} is {examples.kind} and the train set "
                    f"{self.train.kind}; expected one kind: ask for one sampling rate (sampling_rate=) and "
                    "give one task"
                )
        present = [name for name, count in self.train.counts().items() if count]
        if len(present) == 1 and self.task != COMPLETION:
            raise InputError(
                f"every training example of {self.source} has the label {present[0]!r}; expected two labels "
                f"or more: check the label column, or add examples of the others"
            )


def content_of(value: Any) -> list[str | bytes]:
    """Return what identifies an input: text, or geometry and raw bytes."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value.size, tuple):  # an image: numpy's size is a number
        return [value.mode, str(value.size), value.tobytes()]
    return [str(value.dtype), str(value.shape), value.tobytes()]


def _update(digest: Any, parts: Sequence[str | bytes]) -> None:
    """Feed parts with their number and lengths, so that no two lists of parts read alike."""
    digest.update(len(parts).to_bytes(8, "big"))
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "big"))
        digest.update(raw)
