"""Which setting has a say with which choice, so that none is ignored without a word.

One table for the command line, the Python interface and the studies. Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tangentlora.errors import InputError

LORA = ("sgd", "adamw", "lbfgs")
"""The solvers that train LoRA's factors."""

TABLES = ("the bundled messages", "a table", "a folder of tables", "a k-shot folder", "a hub data set")
MEDIA = "a folder of images or recordings"


@dataclass(frozen=True)
class Belongs:
    """A setting in words, the choice that decides if it has a say, and the values with which it has."""

    words: str
    choice: str
    to: tuple[str, ...]


_TRAINED = (*LORA, "proximal")

BELONGS: dict[str, Belongs] = {
    "rank": Belongs("a rank", "solver", LORA),
    "epochs": Belongs("a number of epochs", "solver", _TRAINED),
    "learning_rate": Belongs("a learning rate", "solver", _TRAINED),
    "momentum": Belongs("a momentum", "solver", ("sgd", "proximal")),
    "minibatch_size": Belongs("a minibatch size", "solver", ("sgd", "adamw")),
    "initialisation": Belongs("an initialisation of factors", "solver", LORA),
    "init_scale": Belongs("a scale of the start", "solver", LORA),
    "freeze_a": Belongs("a frozen A", "solver", LORA),
    "perturbation": Belongs("a perturbation", "solver", LORA),
    "outer": Belongs("outer steps", "solver", ("certified", "proximal")),
    "template": Belongs("a template", "readout", ("prompt",)),
    "label_words": Belongs("label words", "readout", ("prompt",)),
    "prototypes": Belongs("sentences as prototypes", "readout", ("prototypes",)),
    "head_init": Belongs("a start of the head", "readout", ("head",)),
    "max_length": Belongs("a most length in tokens", "inputs", ("text",)),
    "revision": Belongs("a revision", "network", ("a hub id",)),
    "text_column": Belongs("a text column", "data", TABLES),
    "label_column": Belongs("a label column", "data", TABLES),
    "label_pattern": Belongs("a label pattern", "data", (MEDIA,)),
    "target_modules": Belongs("target modules", "start", ("the pretrained weights",)),
    "layers": Belongs("layers", "start", ("the pretrained weights",)),
}
"""The settings that have a say with some choices only, by their names in `Settings`."""

EVERYWHERE = frozenset(
    {
        *("model", "dtype", "device", "batch_size", "tangent_dir", "memory", "seed", "tolerance"),
        *("data", "task", "shots", "data_seed", "test_limit", "test_data", "dev_data", "test_fraction"),
        *("readout", "lam", "solver", "init_from"),
    }
)
"""The settings that have a say whatever is chosen."""


OFF = {"outer": 0, "perturbation": 0.0}
"""Values that ask for nothing, and may be given with any choice."""


def refuse_unused(given: Iterable[str], chosen: Mapping[str, str]) -> None:
    """Raise InputError for the first given setting that a choice leaves without a say.

    `chosen` maps choices, as far as they are known, to their values: solver, readout, inputs, network, data
    and start.
    """
    for name in given:
        rule = BELONGS.get(name)
        value = chosen.get(rule.choice) if rule else None
        if rule is not None and value is not None and value not in rule.to:
            kind = "" if rule.choice in ("data", "inputs", "start") else f"the {rule.choice} "
            raise InputError(
                f"got {rule.words} with {kind}{value}, where it has no say, expected it only with "
                f"{_listing(rule.to)}: leave it out, or change the {rule.choice}"
            )


def used_only(values: Mapping[str, Any], chosen: Mapping[str, str]) -> dict[str, Any]:
    """Return the values without those that the choices leave without a say."""
    return {
        name: value
        for name, value in values.items()
        if name not in BELONGS
        or chosen.get(BELONGS[name].choice) is None
        or chosen[BELONGS[name].choice] in BELONGS[name].to
    }


def _listing(values: tuple[str, ...]) -> str:
    return values[0] if len(values) == 1 else f"{', '.join(values[:-1])} or {values[-1]}"
