"""The options of each verb; names are the ecosystem's, defaults are those of `Settings`."""

from __future__ import annotations

from tangentlora.options.adapters import add_audit
from tangentlora.options.compress import add_compress
from tangentlora.options.folders import add_doctor, add_report, add_verify
from tangentlora.options.given import given_for, settings_of
from tangentlora.options.runs import add_demo, add_fit, add_reproduce
from tangentlora.options.theorems import add_advise, add_examine, add_landscape, add_path

__all__ = [
    "add_advise",
    "add_audit",
    "add_compress",
    "add_demo",
    "add_doctor",
    "add_examine",
    "add_fit",
    "add_landscape",
    "add_path",
    "add_report",
    "add_reproduce",
    "add_verify",
    "given_for",
    "settings_of",
]
