"""What the numbers of a run prove, in short sentences.

Every answer of one run solves the same problem, so two bounds hold for each: its objective P is at most
P − (best lower bound) and at least P − (least objective known) above min P. Nothing else is claimed. All of
that is about the linearised network; whether an answer holds on the real one is measured, and where it does
not, that comes first.
"""

from __future__ import annotations

from tangentlora.report.parsing import parse_number
from tangentlora.report.record import Answer, Run
from tangentlora.report.standing import failure, percent
from tangentlora.report.wording import (
    accuracy,
    at_least,
    at_most,
    listing,
    number,
    number_below,
    plain,
    tolerance,
)
from tangentlora.theory.distance import Distance
from tangentlora.theory.standing import Holds

TOLERANCES = (1e-3, 1e-6)
"""Distances to the optimum, relative to max(1, P), at which LoRA ranks are compared."""

ROUNDING = 1e-10
"""No smaller distance is claimed: a certificate counts its rounding in, but run.json does not carry it."""


def verdict(run: Run) -> list[str]:
    """Return sentences: whether the best answer was found, by which ranks, and how it does on new data.

    The first is the headline of everything that is written: where the answer does not hold on the real
    network it says that, and "found the best answer" is not said.
    """
    best = run.best
    if best is None:
        return ["No run ended with a finite objective, so nothing is proved.", *_diverged(run)]
    sentences = [_optimum(run, best), *_followed(best)]
    if run.failing is not None:
        failure, optimum = _failure(run, run.failing, best), _optimum(run, best)
        sentences = [f"{optimum} {failure}"] if _fits_too_closely(run.failing) else [failure, optimum]
    if run.configuration.get("outer"):
        sentences.append(
            "That is about the network linearised at this answer: to first order it says how much better "
            "any answer near it can be, and nothing of the real network far from it."
        )
    if len(run.answers) == 1 and not best.certified and best.message:
        sentences.append(best.message)
    if len(run.lora) > 1:
        sentences += _ranks_near(run)
        sentences += _stopped_short(run)
    sentences += [
        f"{_name(answer)} is proved to end within {at_most(max(distance, ROUNDING))} of the optimum."
        for answer in run.answers
        if answer.rank is None
        and answer is not best
        and (distance := run.distance(answer.objective)) is not None
    ]
    if any((answer.objective or 0.0) > 1 for answer in run.answers):
        sentences.append("Distances are relative to the objective where it is above 1.")
    sentences += _others_failing(run)
    return [*sentences, *_diverged(run), *_smaller_rank(run, best), _held_out(run, best)]


def headline(run: Run) -> str:
    """Return the first sentence of `verdict`."""
    return verdict(run)[0]


def _fits_too_closely(answer: Answer) -> bool:
    """Say if the answer fails for no fault of the linearisation."""
    return answer.standing is not None and answer.standing.verdict is Holds.FITS_TOO_CLOSELY


def _failure(run: Run, answer: Answer, best: Answer) -> str:
    """Say that the answer does not hold on the real network, by which numbers, and what to do."""
    assert answer.standing is not None  # or it would not be known to fail
    lam = plain(parse_number(run.configuration.get("lam")))
    if _fits_too_closely(answer):
        who = "But it" if answer is best else f"But the answer of {_subject(answer)}"
        return failure(answer.standing, who, f"Use a larger λ than {lam}.")
    who = "The answer" if len(run.answers) == 1 else f"The answer of {_subject(answer)}"
    steps = "" if run.configuration.get("outer") else ", or steps on the real network (fit --outer 4)"
    return failure(answer.standing, who, f"Use a larger λ than {lam}{steps}.")


def _followed(best: Answer) -> list[str]:
    """Say what was measured on the real network where the best answer holds there."""
    found = best.standing
    if found is None:
        return []
    loss = f"from {number(found.train.before_loss)} to {number(found.train.real_loss)}"
    said = f"It holds on the real network: there the training loss goes {loss}"
    if found.error is None:
        return [f"{said}."]
    missed = f"the outputs miss the promised ones by {percent(found.error)} of the promised change"
    if found.verdict is Holds.ROUGHLY:
        return [f"{said}, but {missed}: trust the real network's own scores."]
    return [f"{said}, and {missed}."]


def _others_failing(run: Run) -> list[str]:
    main = run.failing
    failing = [a for a in run.answers if a is not main and a.standing and not a.standing.holds]
    close = [_subject(a) for a in failing if _fits_too_closely(a)]
    others = [_subject(a) for a in failing if not _fits_too_closely(a)]
    either = " either" if main and not _fits_too_closely(main) else ""
    said = []
    if others:
        they = f"answer of {others[0]} does" if len(others) == 1 else f"answers of {listing(others)} do"
        said.append(f"The {they} not hold on the real network{either}.")
    if close:
        they = f"answer of {close[0]} is" if len(close) == 1 else f"answers of {listing(close)} are"
        said.append(f"The {they} no better on new examples: accuracy falls by more than chance explains.")
    return said


def _optimum(run: Run, best: Answer) -> str:
    name, objective, bound = _name(best), number(best.objective), run.lower_bound
    distance = run.distance(best.objective)
    if distance is None or bound is None or best.objective is None:
        return f"{name} ends at the objective {objective}; without a lower bound nothing is proved of it."
    if best.certified:
        gap = Distance(max(best.objective - bound, ROUNDING), best.objective)
        near = at_most(max(distance, ROUNDING))
        if run.failing is not None and not _fits_too_closely(run.failing):
            return (
                f"The certificate is about the linearised network alone: there the objective {objective} of "
                f"{_subject(best)} is proved to be within {near} of the global optimum."
            )
        if not gap.telling:
            return f"{name} is proved to be within {near} of the global optimum. {gap.warning()}"
        return (
            f"{name} found the best answer: its objective {objective} is proved to be within {near} of the "
            f"global optimum of the linearised problem, {at_most(gap.share)} of the objective."
        )
    goal = tolerance(parse_number(run.configuration["tolerance"]))
    runs = "No run is" if len(run.answers) > 1 else f"{name} is not"
    left = at_most(max(best.objective - bound, ROUNDING))
    return (
        f"{runs} certified at the tolerance {goal}: the least objective is {objective}, and no answer of any "
        f"rank is below {number_below(bound)}, so at most {left} is left to gain."
    )


def _ranks_near(run: Run) -> list[str]:
    """Say which LoRA ranks are proved to end within each of the distances, or how near the closest is."""
    distances = [(a.rank, d) for a in run.lora if (d := run.distance(a.objective)) is not None]
    sentences = []
    for limit in TOLERANCES:
        goal = f"within {tolerance(limit)} of the global optimum"
        near = [rank for rank, distance in distances if distance <= limit]
        far = [a.rank for a in run.lora if a.rank not in near]
        if not far:
            sentences.append(
                f"Every LoRA rank tried ({listing(near)}) is proved to end {goal}, so none was caught in a "
                "local minimum worse than that."
            )
        elif near:
            sentences.append(
                f"The smallest LoRA rank proved to end {goal} is {near[0]}; {_ranks(near)} {_is(near)} "
                f"proved to, {_ranks(far)} {_is(far)} not."
            )
        else:
            rank, distance = min(distances, key=lambda pair: pair[1], default=(None, None))
            closest = "" if distance is None else f"; the closest is rank {rank}, within {at_most(distance)}"
            return [*sentences, f"No LoRA rank tried is proved to end {goal}{closest}."]
    return sentences


def _stopped_short(run: Run) -> list[str]:
    """Say by how much at least each LoRA run misses the optimum, and whether it had settled."""
    far = [a for a in run.lora if (run.distance(a.objective) or 0.0) > TOLERANCES[-1]]
    short = [(a, s) for a in far if (s := run.shortfall(a) or 0.0) > ROUNDING]
    if not short:
        return []
    amounts = listing([f"{at_least(amount)} at rank {answer.rank}" for answer, amount in short])
    sentences = [f"LoRA stops short of the optimum by at least {amounts}."]
    if unsettled := [a.rank for a, _ in short if a.status == "EPOCHS_SPENT"]:
        sentences.append(
            f"{_ranks(unsettled).capitalize()} used every epoch, so more epochs may lower the objective."
        )
    return sentences


def _diverged(run: Run) -> list[str]:
    return [
        f"{_name(a)} has no finite objective. {a.message}".strip() for a in run.answers if a.objective is None
    ]


def _smaller_rank(run: Run, best: Answer) -> list[str]:
    rank = best.layer_rank
    if rank is None:
        return []
    if rank == 0:
        lam = plain(run.configuration.get("lam"))
        return [f"The best answer has rank 0 in every layer: at λ = {lam} it changes nothing; try a lower λ."]
    best_answer = "this answer" if run.failing else "the best answer"
    if rank == 1:
        return [f"No layer of {best_answer} has a rank above 1, so LoRA of rank 1 can hold it."]
    allowed = f", of the {best.rank} it was given" if best.rank and best.rank > rank else ""
    return [
        f"The largest rank in a layer of {best_answer} is {rank}{allowed}, so LoRA of rank {rank} can "
        "hold it; these numbers do not rule out a smaller rank."
    ]


def _held_out(run: Run, best: Answer) -> str:
    if not run.has_test_set:
        return (
            "No held-out rows: all scores are on the training rows, and nothing is measured on new examples."
        )
    scores = best.linearised.test_accuracy, best.real.test_accuracy, run.before.test_accuracy
    linearised, real, before = map(accuracy, scores)
    return (
        f"On {run.data['n_test']} held-out examples its accuracy is {linearised} in the linearised network "
        f"and {real} in the real one, against {before} before training."
    )


def _ranks(ranks: list[int | None]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {listing(ranks)}"


def _is(ranks: list[int | None]) -> str:
    return "are" if len(ranks) > 1 else "is"


def _name(answer: Answer) -> str:
    """Return the run's name as the subject of a sentence."""
    name = _subject(answer)
    return name[:1].upper() + name[1:]


def _subject(answer: Answer) -> str:
    """Return the run's name as it stands within a sentence."""
    return "the certified solver" if answer.rank is None and answer.solver == "certified" else answer.name
