"""No option is ignored without a word: a table says which has a say with which choice, and is complete."""

from __future__ import annotations

import argparse
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest

from tangentlora.belongs import BELONGS, EVERYWHERE, MEDIA, refuse_unused, used_only
from tangentlora.cli import VERBS, _parser
from tangentlora.data.kinds import Kind
from tangentlora.errors import InputError
from tangentlora.studies.layers import _ELSEWHERE, _VARIANTS
from tangentlora.studies.settings import ReadoutName, Settings, SolverName
from tangentlora.studies.study import Grid, Variant

OTHER: dict[str, Any] = {
    "rank": 3,
    "epochs": 7,
    "learning_rate": 0.5,
    "momentum": 0.25,
    "minibatch_size": 4,
    "initialisation": "spectral",
    "init_scale": 2.0,
    "freeze_a": True,
    "perturbation": 0.1,
    "outer": 2,
    "template": "{text} {mask}",
    "label_words": ("a", "b"),
    "prototypes": ("a.", "b."),
    "head_init": "random",
    "target_modules": ("key",),
    "layers": "all",
}
"""A value other than the default of every setting whose choice stands in the settings themselves."""

ALONE = {
    "json quiet strict help version": "of how it is said",
    "list study size seeds lams within tensorboard": "of a study, whatever its variants",
    "output_dir folder adapter store": "places",
    "ranks points fraction folds repeats local polish only answer": "read by their one verb, always",
    "weight_decay lora_alpha": "which become λ, see settings_of",
    "variants real": "of a study, checked by Grid and layers",
}
"""What single verbs are told beside settings: none depends on another choice that the verb offers."""


def options_of(verb: str) -> list[argparse.Action]:
    parsers = next(a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    return list(parsers.choices[verb]._actions)


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_every_verb_is_in_the_table_or_has_always_a_say(verb: str) -> None:
    alone = {name for names in ALONE for name in names.split()}
    known = {*BELONGS, *EVERYWHERE, *_VARIANTS, *alone}
    assert {action.dest for action in options_of(verb)} <= known


def test_every_setting_is_in_one_place_of_the_table() -> None:
    assert {*BELONGS, *EVERYWHERE} == {field.name for field in fields(Settings)}
    assert not set(BELONGS) & EVERYWHERE
    assert set(_VARIANTS) <= {*BELONGS, "solver", *(field.name for field in fields(Grid))}
    assert set(_ELSEWHERE) <= {field.name for field in fields(Settings)}


def test_the_table_knows_the_choices_by_their_names() -> None:
    known = {
        "solver": get_args(SolverName),
        "readout": get_args(ReadoutName),
        "data": get_args(Kind),
        "inputs": ("text",),
        "network": ("a hub id",),
        "start": ("the pretrained weights",),
    }
    for rule in BELONGS.values():
        assert set(rule.to) <= set(known[rule.choice])
    assert MEDIA in get_args(Kind)
    assert all(set(names) <= set(get_args(Variant)) for names in _VARIANTS.values())


@pytest.mark.parametrize(("name", "solver"), [*product(OTHER, get_args(SolverName))])
def test_python_settings_are_refused_exactly_where_the_table_says(name: str, solver: Any) -> None:
    rule = BELONGS[name]
    given: dict[str, Any] = {"solver": solver, name: OTHER[name]}
    if rule.choice == "readout":
        for readout in ("prompt", "prototypes", "head"):
            _expect(given | {"readout": readout}, refused=readout not in rule.to)
    elif rule.choice == "start":
        _expect(given, refused=False)
        _expect(given | {"init_from": "adapter"}, refused=True)
    else:
        _expect(given, refused=solver not in rule.to)


def _expect(given: dict[str, Any], *, refused: bool) -> None:
    if not refused:
        Settings(**given)
        return
    with pytest.raises(InputError, match=r"^got .*expected .*: "):
        Settings(**given)


def test_settings_for_another_solver_lose_what_has_no_say_with_it() -> None:
    trained = Settings(solver="sgd", rank=3, momentum=0.5, epochs=9, tangent_dir=Path("somewhere"), lam=0.2)
    full = trained.solved_by("proximal")
    assert full == Settings(solver="proximal", momentum=0.5, epochs=9, tangent_dir=Path("somewhere"), lam=0.2)
    assert trained.solved_by("certified") == Settings(tangent_dir=Path("somewhere"), lam=0.2)
    assert trained.solved_by("adamw", rank=4).rank == 4


def test_what_is_not_known_yet_refuses_nothing() -> None:
    refuse_unused(BELONGS, {})
    assert used_only(OTHER, {}) == OTHER
    assert set(used_only(OTHER, {"readout": "head"})) == set(OTHER) - {
        "template",
        "label_words",
        "prototypes",
    }
