"""A run folder: the files that a run leaves, read with their types and written whole."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tangentlora.errors import InputError
from tangentlora.report.parsing import parse_object, parsed, read_text
from tangentlora.report.record import FORMAT, Answer, CertificateRecord, Metric, Run
from tangentlora.theory.seals import PAGES, SEAL, described, seal_of, sealed_files

Record = TypeVar("Record")


@dataclass(frozen=True)
class RunFolder:
    """The folder that `tangentlora demo` and `tangentlora fit` write; other files are found beside run.json.

    Readers raise `InputError` where a file is missing or damaged. Writers make the folders they need, and
    replace a file in one step, so that a reader never sees half of one.
    """

    path: Path

    def read_run(self) -> Run:
        """Return what run.json says."""
        values = self._read("run.json", json.loads)
        version = self._parse("run.json", parse_object, values).get("format")
        if version != FORMAT:
            raise InputError(
                f"got {self.path / 'run.json'} in format {version!r}, expected format {FORMAT}; run fit or "
                "demo again with this version of tangentlora."
            )
        return self._parse("run.json", Run.parse, values)

    def read_metrics(self) -> list[Metric]:
        """Return the logged epochs of all runs as they were written; none where there is no metrics.jsonl."""
        if not (self.path / "metrics.jsonl").exists():
            return []
        lines = self._read("metrics.jsonl", str.splitlines)
        rows = [
            self._parse(f"metrics.jsonl, line {i}", json.loads, line)
            for i, line in enumerate(lines, 1)
            if line
        ]
        return [self._parse("metrics.jsonl", Metric.parse, row) for row in rows]

    def read_certificate(self) -> CertificateRecord | None:
        """Return the certificate of the main answer, None where there is none (a run that diverged)."""
        if not (self.path / "certificate.json").exists():
            return None
        return self._parse(
            "certificate.json", CertificateRecord.parse, self._read("certificate.json", json.loads)
        )

    def read_adapter_config(self, answer: Answer) -> dict[str, Any] | None:
        """Return the configuration of an answer's adapter, None where it has none (every rank is 0)."""
        name = f"{answer.adapter}/adapter_config.json"
        return (
            self._read(name, lambda text: dict(parse_object(json.loads(text))))
            if (self.path / name).exists()
            else None
        )

    def write_bytes(self, name: str, content: bytes) -> Path:
        """Write a file, named relative to the folder, whole or not at all, and return its path."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            partial.write_bytes(content)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file in UTF-8, whole or not at all, and return its path."""
        return self.write_bytes(name, text.encode())

    def write_json(self, name: str, value: object) -> Path:
        """Write a value as JSON, with null for every number that is not finite, and return its path."""
        return self.write_text(name, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")

    def seal(self, run: Mapping[str, Any]) -> Path:
        """Write seal.json, the checksums of every file of the run that run.json describes."""
        return self.write_json(SEAL, described(seal_of(self.path, sealed_files(self.path, run))))

    def seal_pages(self) -> None:
        """Renew the seal of figures, page and card alone, where the run has a seal."""
        if (self.path / SEAL).exists():
            run, seal = (self._read(name, json.loads) for name in ("run.json", SEAL))
            kept = {name: own for name, own in seal["files"].items() if name.split("/")[0] not in PAGES}
            names = (name for name in sealed_files(self.path, run) if name.split("/")[0] in PAGES)
            self.write_json(SEAL, described(kept | seal_of(self.path, names)))

    def _read(self, name: str, parse: Callable[[str], Any]) -> Any:
        wanted = "a run folder; name the --output-dir of an earlier tangentlora fit or demo"
        return self._parse(name, parse, read_text(self.path, name, wanted))

    def _parse(self, name: str, parse: Callable[[Any], Record], value: Any) -> Record:
        return parsed(self.path / name, parse, value, "tangentlora wrote it; run fit or demo again")


def _finite(value: Any) -> Any:
    """Return the value with None in place of NaN and the infinities, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
