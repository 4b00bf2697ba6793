"""The model card that goes with the adapter: README.md of the run folder."""

from __future__ import annotations

from pathlib import Path

from tangentlora.report.folder import RunFolder
from tangentlora.report.loading import base_model, loading_code, public_name
from tangentlora.report.templates import render
from tangentlora.report.verdict import verdict


def write_card(folder: RunFolder) -> Path:
    """Write README.md, a model card with YAML front matter, into the folder and return its path.

    It describes the main answer. Raises `InputError` where the folder's files are missing or damaged.
    """
    run = folder.read_run()
    base = public_name(base_model(run))
    text = render(
        "card.md.j2",
        run=run,
        main=run.main,
        certificate=folder.read_certificate(),
        verdict=verdict(run),
        base_model=base,
        code=loading_code(folder, run.main, base),
    )
    return folder.write_text("README.md", text)
