"""What a trained adapter needs next: more training, more rank, less rank or nothing, by a few passes.

One pass over the data gives M_t = ∇_{W_t} L(W + δ); what it says of δ is `theory.first_order`, and the real
network is then asked how far L + λ Σ‖δ_t‖_* falls. Derived; docs/theory.md, "A real adapter".
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tangentlora.data import COMPLETION, Splits
from tangentlora.errors import InputError
from tangentlora.models.attach import attached
from tangentlora.models.readouts import Readout
from tangentlora.studies.audit_lam import ChosenLam, choose_lam
from tangentlora.studies.audit_local import LocalPart, local_part, why_not
from tangentlora.studies.audit_report import Audit, Scores
from tangentlora.studies.audit_search import RealObjective
from tangentlora.studies.limits import require_lam
from tangentlora.studies.notes import order_note
from tangentlora.studies.opened import Opened, open_any
from tangentlora.studies.standing import outputs_at, pass_rounding, with_reach
from tangentlora.tangent.gradient import weight_gradients
from tangentlora.theory.first_order import first_order
from tangentlora.theory.regime import accuracy, set_standing
from tangentlora.theory.standing import Standing
from tangentlora.theory.training import judge

_STEPS = 3
"""Forward passes of both line searches together. With the one at W and the gradient's forward and backward
pass, which take the time of two forward passes or more, that is less than four times the gradient."""


_MOVED_ROWS = 1024  # of δ that are formed at a time, to see if it is 0


def audit_opened(
    opened: Opened,
    *,
    lam: float | None = None,
    weight_decay: float | None = None,
    local: bool = True,
    batch_size: int = 32,
    progress: bool = False,
) -> Audit:
    """Audit an adapter on the training examples of `opened`; its network is afterwards as before.

    λ is as given, else that of the weight decay w as a penalty w/2 (‖A‖² + ‖B‖²), else the recorded one, else
    fitted. With `local` the network is also linearised at W + δ and at W, where its outputs are few enough
    (`audit_local.why_not`), in K−1 backward passes over the data for each. All else takes one backward and at
    most five forward passes. Raises InputError for a negative λ, and in the cases of `weight_gradients`.
    """
    require_lam(lam, weight_decay)  # before the passes
    if progress:
        print(opened.check.leaving("dev", "test").told(), file=sys.stderr)
    examples, y = opened.splits.train, torch.tensor(opened.splits.train.labels)
    cut = opened.cut(progress=progress)
    with attached(opened.network.module, opened.targets, opened.factors):
        pass_ = weight_gradients(
            opened.network,
            examples.inputs,
            y,
            opened.targets,
            opened.loss,
            batch_size=batch_size,
            progress=progress,
        )
    chosen = choose_lam(opened, pass_.gradients, lam, weight_decay)
    found = first_order(pass_.gradients, opened.factors, chosen.values)
    before = opened.network.predict(examples.inputs, batch_size)
    real = RealObjective(opened, y, chosen.values, before, pass_.outputs, batch_size)
    remaining = real.along_gradient(pass_.gradients, found)
    gain = real.along_escape(found, _STEPS - (0 if remaining is None else remaining.evaluations))
    reason = why_not(opened, chosen.values, before.shape[1]) if local else "it was not asked for"
    part = None
    if reason is None:
        one = next(iter(chosen.values.values()))
        outputs = (before, pass_.outputs)
        try:
            part = local_part(opened, real.balanced, one, *outputs, batch_size=batch_size, progress=progress)
        except InputError as refusal:  # what a gradient can be had of cannot always be linearised
            reason = f"it cannot be had ({refusal})"
    standing = _standing(opened, real, before, pass_.outputs, chosen, batch_size, part)
    used = max(layer.used for layer in found.layers.values())
    needed = used if part is None else max(part.reduced.values())
    judged = judge(
        found,
        remaining=None if remaining is None else remaining.relative,
        gain=None if gain is None else gain.relative,
        needed_rank=needed,
        changed=not torch.equal(before, pass_.outputs) and _moved(opened),
    )
    return Audit(
        adapter=opened.adapter.name,
        model=opened.network.name,
        task=opened.splits.task.name,
        n_examples=len(examples),
        judged=judged,
        found=found,
        lam=chosen,
        before=_scores(real, before),
        after=_scores(real, pass_.outputs),
        objective=real.start,
        remaining=remaining,
        gain=gain,
        local=part,
        why_not_local=reason,
        reduced=needed < used,
        data=opened.check.leaving("dev", "test"),
        notes=opened.notes,
        standing=standing,
        cut=cut.get("train"),
        order=order_note(opened.network, opened.splits.task),
    )


def _moved(opened: Opened) -> bool:
    """Say whether δ_t = u_t v_tᵀ is other than 0 in some layer."""
    some = ((rows, v) for u, v in opened.factors.values() for rows in torch.split(u, _MOVED_ROWS))
    return any(bool((rows @ v.T).any()) for rows, v in some)


def audit(
    adapter: nn.Module | str | Path,
    data: Splits | str,
    *,
    processor: Any = None,
    readout: Readout | str | None = None,
    adapter_name: str | None = None,
    lam: float | None = None,
    weight_decay: float | None = None,
    local: bool = True,
    batch_size: int = 32,
    progress: bool = False,
    **settings: Any,
) -> Audit:
    """Say if a trained LoRA adapter needs more training, more rank, less rank or nothing, with the numbers.

    `adapter` is a live PeftModel with its `processor`, `adapter_name` where several of its adapters are
    active, and a `readout` object where that is not its classification head or the likelihood of completions;
    or a folder or hub id, read as `readout`, a name, and `settings`, other fields of `Settings`, say. A live
    model is afterwards as before. For λ, `local` and what it costs see `audit_opened`. Raises InputError as
    `open_any` and `audit_opened` do.
    """
    require_lam(lam, weight_decay)  # before anything is loaded
    with open_any(
        adapter, data, settings, processor=processor, readout=readout, adapter_name=adapter_name
    ) as opened:
        return audit_opened(
            opened,
            lam=lam,
            weight_decay=weight_decay,
            local=local,
            batch_size=batch_size,
            progress=progress,
        )


def _standing(
    opened: Opened,
    real: RealObjective,
    before: Float[Tensor, "N K"],
    after: Float[Tensor, "N K"],
    chosen: ChosenLam,
    batch_size: int,
    part: LocalPart | None,
) -> Standing:
    """Return how the adapter stands against no adapter, on the training examples.

    The penalty counts where λ is that of a run of ours, which minimised this objective; another λ is no more
    than what the adapter is held against here. The adapter was trained on the network itself, or is judged as
    if it had been: how linear the network is on the way has no say.
    """
    found = set_standing(opened.loss, real.y, before, None, after)
    if opened.splits.task == COMPLETION:  # which have no classes
        found = replace(found, before_accuracy=None, real_accuracy=None, lost=None, gained=None)
    penalty = real.start - real.loss if chosen.source == "recorded" else 0.0
    standing = Standing({"train": found}, penalty, pass_rounding(opened.network, before))
    if part is not None:
        return replace(standing, reach=part.regime.reach)
    return with_reach(
        standing,
        lambda tau: real.mean_loss(outputs_at(opened, real.balanced, tau, batch_size)),
    )


def _scores(real: RealObjective, z: Float[Tensor, "N K"]) -> Scores:
    completion = real.opened.splits.task == COMPLETION
    return Scores(real.mean_loss(z), None if completion else accuracy(z, real.y))
