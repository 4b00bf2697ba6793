from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tangentlora.errors import InputError
from tangentlora.solvers.certified import Certified
from tangentlora.solvers.descent import Descent
from tangentlora.solvers.proximal import Proximal
from tangentlora.studies.settings import Settings, default_tangent_dir
from tangentlora.studies.trials import comparison, trial

DESCENT = {
    "rank": 3,
    "epochs": 7,
    "learning_rate": 0.5,
    "initialisation": "spectral",
    "freeze_a": True,
    "perturbation": 0.2,
    "seed": 11,
    "tolerance": 1e-4,
}


OF_ONE = {"sgd": {"momentum": 0.1, "minibatch_size": 4}, "adamw": {"minibatch_size": 4}, "lbfgs": {}}


@pytest.mark.parametrize("method", OF_ONE)
def test_every_setting_of_descent_arrives(method: Any) -> None:
    given = DESCENT | {"init_scale": 3.0} | OF_ONE[method]
    made = trial(Settings(solver=method, **given), "somewhere")
    assert (made.name, made.folder, made.solver_name, made.rank) == ("LoRA r=3", "somewhere", method, 3)
    expected = {"batch_size" if name == "minibatch_size" else name: value for name, value in given.items()}
    assert made.solver == Descent(method=method, **expected)


def test_the_defaults_of_settings_are_those_of_descent() -> None:
    assert trial(Settings(solver="sgd")).solver == Descent()


def test_the_other_solvers_take_what_concerns_them() -> None:
    given = {"epochs": 7, "learning_rate": 0.5, "tolerance": 1e-4, "seed": 11}
    full = trial(Settings(solver="proximal", momentum=0.0, **given))
    assert (full.name, full.folder, full.rank) == ("full fine-tuning", ".", None)
    assert full.solver == Proximal(epochs=7, tolerance=1e-4, seed=11, learning_rate=0.5, momentum=0.0)
    assert trial(Settings(solver="proximal")).solver == Proximal()
    certified = trial(Settings(solver="certified", tolerance=1e-4))
    assert (certified.name, certified.rank) == ("certified", None)
    assert certified.solver == Certified(tolerance=1e-4)


def test_a_comparison_has_each_rank_full_training_and_the_optimum_as_its_main_answer() -> None:
    trials = comparison(Settings(epochs=5, solver="adamw"), (1, 4))
    assert [(t.name, t.folder, t.solver_name, t.rank) for t in trials] == [
        ("LoRA r=1", "lora-r1", "adamw", 1),
        ("LoRA r=4", "lora-r4", "adamw", 4),
        ("full fine-tuning", "full", "proximal", None),
        ("certified", ".", "certified", None),
    ]
    assert len({t.folder for t in trials}) == len(trials)


def test_tangents_are_kept_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_tangent_dir() == tmp_path / "tangentlora" == Settings().tangent_dir
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert default_tangent_dir() == Path.home() / ".cache" / "tangentlora"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"batch_size": 0},
            "got batch size 0 and test limit 1000, expected at least 1 .*: change --batch-size",
        ),
        ({"test_limit": -1}, "test limit -1"),
        ({"tolerance": 0.0}, "got tolerance 0.0, expected a positive number .*: change --tolerance"),
        ({"tolerance": math.nan}, "got tolerance nan"),
        ({"tolerance": math.inf}, "got tolerance inf"),
        ({"lam": -0.1}, "got λ = -0.1, expected a number of at least 0: give --lam a positive value"),
        ({"lam": math.nan}, "got λ = nan"),
        ({"lam": math.inf}, "got λ = inf"),
        ({"rank": 0}, "got rank 0, expected at least 1: change --rank"),
        ({"epochs": -3}, "got epochs -3, expected at least 1: change --epochs"),
        ({"shots": 0}, "got shots 0, expected at least 1"),
        ({"max_length": 0}, "got max length 0"),
        ({"minibatch_size": 0}, "got minibatch size 0"),
        ({"momentum": 1.0}, r"got momentum 1.0, expected a number in \[0, 1\)"),
        ({"learning_rate": math.nan}, "got learning rate nan, expected auto or a positive number"),
        ({"learning_rate": -1.0}, "got learning rate -1.0"),
        ({"perturbation": -1.0}, "got perturbation -1.0"),
        ({"init_scale": 0.0}, "got an initial scale of 0.0"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Settings(**settings)


def test_an_unknown_initialisation_is_refused_where_no_types_are_checked() -> None:
    code = "import tangentlora.studies.settings as s; s.Settings(initialisation='golden')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    message = "got the initialisation 'golden', expected one of paper, spectral, peft: change"
    assert message in done.stderr


def test_the_certified_solver_wants_a_penalty() -> None:
    with pytest.raises(InputError, match=r"got λ = 0 for the certified solver, .* use --solver sgd"):
        Settings(lam=0.0)
    settings = Settings(lam=0.0, solver="sgd")
    assert trial(settings).rank == 8
    with pytest.raises(InputError, match="got λ = 0 for the certified solver"):
        comparison(settings, (1,))


def test_settings_are_read_without_torch() -> None:
    code = "import sys, tangentlora.studies.settings as s; s.Settings(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_settings_hold_values_that_json_can() -> None:
    kinds = {str(field.type) for field in fields(Settings) if field.name != "tangent_dir"}
    assert not [kind for kind in kinds if "Tensor" in kind or "Path" in kind or "Callable" in kind]
