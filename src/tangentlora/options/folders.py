"""The verbs that read what is there: verify and report a run folder, doctor the installation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tangentlora.options.shared import add_verb


def add_verify(verbs: Any) -> None:
    """Add `verify`: check a certificate from the files alone."""
    parser = add_verb(
        verbs, "verify", "check a run's certificate anew, with code that shares nothing with the solver"
    )
    parser.add_argument("folder", type=Path, help="the run folder")
    parser.add_argument("--store", type=Path, help="the folder of the tangent, if it has moved")
    parser.add_argument("--strict", action="store_true", help="exit 1 also when the answer is not certified")


def add_report(verbs: Any) -> None:
    """Add `report`: make figures, page and model card of a run folder again."""
    parser = add_verb(verbs, "report", "write figures, report.html and README.md of a run folder again")
    parser.add_argument("folder", type=Path, help="the run folder")


def add_doctor(verbs: Any) -> None:
    """Add `doctor`: is everything here that a run needs?"""
    parser = add_verb(verbs, "doctor", "check the installation, and solve and verify a small problem")
    parser.add_argument("--device", default="cpu", help="the device to try (default: cpu)")
