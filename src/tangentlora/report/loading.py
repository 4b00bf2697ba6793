"""How the adapter of a run is loaded elsewhere: the base model's public name and the code to paste."""

from __future__ import annotations

import json
from pathlib import PurePosixPath

from tangentlora.report.folder import RunFolder
from tangentlora.report.record import Answer, Run

_PACKAGED = {"minilm": "sentence-transformers/all-MiniLM-L6-v2"}
"""Names that this project gives to packaged weights, and their public names."""


def base_model(run: Run) -> str:
    """Return the name or folder to load the base model by."""
    model = str(run.configuration.get("model", ""))
    return _PACKAGED.get(model, model)


def public_name(model: str) -> str:
    """Return a model's name for publication: of a local folder only the last part."""
    local = model.startswith(("/", ".", "~")) or "\\" in model
    return PurePosixPath(model.replace("\\", "/")).name if local else model


def loading_code(folder: RunFolder, answer: Answer, model: str) -> str | None:
    """Return Python that loads an answer's adapter on the model; None where the folder holds no adapter."""
    config = folder.read_adapter_config(answer)
    if config is None:
        return None
    name = str((config.get("auto_mapping") or {}).get("base_model_class"))
    # The adapter's keys are names within this class: another head would put a prefix before them.
    loader = name if name.isidentifier() and name != "None" else "AutoModel"
    path = f"{folder.path.resolve().name}/{answer.adapter}"
    return (
        "from peft import PeftModel\n"
        f"from transformers import {loader}\n\n"
        f"model = {loader}.from_pretrained({json.dumps(model)})\n"
        f"model = PeftModel.from_pretrained(model, {json.dumps(path)})\n"
        "model.eval()"
    )
