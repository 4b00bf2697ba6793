"""Whether an answer holds on the real network: as JSON keeps it, and in words."""

from __future__ import annotations

import math
from dataclasses import asdict, fields, replace
from typing import Any

from tangentlora.report.parsing import Number, parse_number, parse_object
from tangentlora.report.wording import accuracy, listing, number, plain, relative
from tangentlora.theory.standing import LEFT, Holds, Reach, SetStanding, Standing

NAMES = {"train": "training", "dev": "dev", "test": "held-out"}
"""What the sets are called in sentences."""

_COUNTS = ("n", "lost", "gained", "missed", "met")


def describe_standing(found: Standing) -> dict[str, Any]:
    """Return everything as JSON can hold it, but for numbers that are not finite."""
    reach = None if found.reach is None else asdict(found.reach)
    return {
        "verdict": found.verdict.name,
        "message": found.verdict.value,
        "holds": found.holds,
        "facts": facts(found),
        "error": found.error,
        "objective_before": found.train.before_loss,
        "objective": found.objective,
        "penalty": found.penalty,
        "slack": found.slack,
        "reach": reach,
        "sets": {name: asdict(one) | {"chance": one.chance} for name, one in found.sets.items()},
    }


def parse_standing(row: object) -> Standing | None:
    """Read what `describe_standing` gave, None where there is nothing; the verdict is judged anew."""
    values = parse_object(row)
    if not values:
        return None
    sets = {str(name): _parse_set(one) for name, one in parse_object(values["sets"]).items()}
    if "train" not in sets:
        raise ValueError("real_network has no training set")
    if values.get("verdict") == Holds.LEFT_REGIME.name and sets["train"].error is None:
        sets["train"] = replace(sets["train"], error=math.inf)  # for which JSON has no word
    reach = values.get("reach")
    return Standing(
        sets,
        parse_number(values.get("penalty")),
        parse_number(values.get("slack")) or 0.0,
        None if reach is None else _parse_reach(reach),
    )


def standing_of_losses(before: Number, linear: Number, real: Number, objective: Number) -> Standing | None:
    """Return what training losses alone say, for records that hold no more; None where one is missing."""
    if before is None or linear is None or real is None or objective is None:
        return None
    slack = 1e-6 * max(1.0, before)
    return Standing({"train": SetStanding(0, before, linear, real)}, objective - linear, slack)


def facts(found: Standing) -> list[str]:
    """Return what speaks against the answer, each as words with `its` for the real network's."""
    train, said = found.train, []
    if found.verdict is Holds.NOT_FINITE:
        return ["its training loss is not a finite number"]
    if found.verdict is Holds.LOSS_RISES:
        said.append(f"its training loss rises from {number(train.before_loss)} to {number(train.real_loss)}")
    if found.verdict is Holds.OBJECTIVE_RISES:
        said.append(
            f"its objective (loss + λ · penalty) rises from {number(train.before_loss)} to "
            f"{number(found.objective)}"
        )
    said += [
        f"its {NAMES.get(name, name)} accuracy falls from {accuracy(one.before_accuracy)} to "
        f"{accuracy(one.real_accuracy)} (by chance: p = {relative(one.chance)})"
        for name, one in found.sets.items()
        if one.accuracy_falls
    ]
    if found.verdict is Holds.LEFT_REGIME:
        falls = f"though its training loss goes from {number(train.before_loss)} to {number(train.real_loss)}"
        said.append(f"{_missed(found.error)}, {falls}")
    elif found.error is not None and not found.error <= LEFT:
        said.append(_missed(found.error))
    return said


def _missed(error: float | None) -> str:
    if error is None or not math.isfinite(error):
        return "its outputs have nothing to do with the promised ones"
    return f"its outputs miss the promised ones by {percent(error)} of the promised change"


def reach_words(found: Reach | None, before: Number) -> str | None:
    """Say how far along the update the real training loss falls; None where that was not looked for."""
    if found is None:
        return None
    if found.tau == 1:
        return f"The real training loss falls all the way, from {number(before)} to {number(found.loss)}."
    if found.tau == 0:
        least = min(tau for tau, _ in found.tried if tau)
        return f"No part of the update that was tried, down to {plain(least)} of it, lowers that loss."
    return (
        f"The real training loss falls up to τ = {plain(found.tau)} of the update, from {number(before)} to "
        f"{number(found.loss)}, and rises after it."
    )


def too_close(found: Standing) -> str:
    """Return what is said beside a proof where accuracy falls in the linearised network, too."""
    linear = listing([accuracy(one.linear_accuracy) for one in found.sets.values() if one.accuracy_falls])
    return f"{listing(facts(found))}, in the linearised network too ({linear}): the fit is too close"


def failure(found: Standing, who: str, remedy: str) -> str:
    """Return the headline of an answer that does not hold: what happened, and what to do."""
    if found.verdict is Holds.FITS_TOO_CLOSELY:
        return f"{who} is no better on new examples: {too_close(found)}. {remedy}"
    said = f"{who} does not hold on the real network: {listing(facts(found))}. {remedy}"
    if found.reach is None or found.reach.tau == 1:
        return said
    return f"{said} {reach_words(found.reach, found.train.before_loss)}"


def recorded_failure(found: Standing) -> str:
    """Return what a record says of an answer that does not hold, in a sentence beside a proof."""
    said = f"the answer does not hold on the real network: {listing(facts(found))}"
    if found.verdict is Holds.FITS_TOO_CLOSELY:
        said = too_close(found)
    return f"That is about the linearised network. By the run's record, not measured again, {said}."


def mark(found: Standing | None) -> str:
    """Return one word for a column: yes, roughly or no, and a dash where nothing was measured."""
    if found is None:
        return "–"
    return "roughly" if found.verdict is Holds.ROUGHLY else "yes" if found.holds else "no"


def percent(share: float) -> str:
    """Return a share as a user reads it: 3.27% or 137%."""
    return f"{100 * share:.3g}%"


def _parse_set(row: object) -> SetStanding:
    values = parse_object(row)
    numbers = {field.name: parse_number(values.get(field.name)) for field in fields(SetStanding)}
    counts = {name: None if values.get(name) is None else int(values[name]) for name in _COUNTS}
    return SetStanding(**(numbers | counts | {"n": counts["n"] or 0}))  # type: ignore[arg-type]


def _parse_reach(row: object) -> Reach:
    values = parse_object(row)
    tried = tuple((float(tau), float(loss)) for tau, loss in values["tried"])
    return Reach(float(values["tau"]), float(values["loss"]), tried)
