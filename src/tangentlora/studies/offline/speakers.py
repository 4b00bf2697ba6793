"""The same recordings sorted by who speaks instead of by what is said."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from tangentlora.errors import InputError

_NAME = re.compile(r"(?P<word>[^_]+)_(?P<speaker>[^_]+)_(?P<take>\d+)\.wav")
_HELD_OUT = 3  # every third recording of a speaker is for testing


def by_speaker(source: Path, folder: Path) -> Path:
    """Copy recordings called `WORD_SPEAKER_TAKE.wav` to `folder/{train,test}/SPEAKER`, and return `folder`.

    All parts and classes of `source` are taken together. In the order of words and takes every third
    recording of a speaker goes to the test set, so that both parts hold all words. A `folder` that is there
    is left as it is. Raises InputError where `source` has no recordings, two of the same name, one that is
    called otherwise, or a single speaker.
    """
    if folder.exists():
        return folder
    speakers: dict[str, dict[tuple[str, int], Path]] = {}
    for path in sorted(source.rglob("*.wav")):
        parts = _NAME.fullmatch(path.name)
        if parts is None:
            raise InputError(
                f"got the recording {path}, expected a name such as 3_anna_12.wav for word, speaker and "
                "take; rename it."
            )
        takes = speakers.setdefault(parts["speaker"], {})
        key = (parts["word"], int(parts["take"]))
        if key in takes:
            raise InputError(f"got {path} and {takes[key]}, expected each recording once; remove one.")
        takes[key] = path
    if len(speakers) < 2:
        raise InputError(
            f"got recordings of {len(speakers)} speaker(s) in {source}, expected at least two; give a folder "
            "of recordings such as 3_anna_12.wav."
        )
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for speaker, takes in speakers.items():
            for i, key in enumerate(sorted(takes)):
                part = "test" if i % _HELD_OUT == _HELD_OUT - 1 else "train"
                (partial / part / speaker).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(takes[key], partial / part / speaker / takes[key].name)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder
