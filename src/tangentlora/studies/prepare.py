"""Settings → the network, its tangents on training and held-out examples, and the convex problem."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.adapters import Adapter, read_adapter
from tangentlora.belongs import refuse_unused
from tangentlora.blocks import Factors, cast
from tangentlora.data import COMPLETION, DataCheck, Examples, Splits, Task, check_data
from tangentlora.errors import InputError
from tangentlora.models.brought import Brought
from tangentlora.models.causal import CausalPrompt
from tangentlora.models.classification import ClassificationHead
from tangentlora.models.completion import Completion
from tangentlora.models.lengths import Cut, cut_of
from tangentlora.models.load import load_config, load_network, require_device
from tangentlora.models.native import is_causal, native_readout
from tangentlora.models.network import Network
from tangentlora.models.probe import fit_linear_probe
from tangentlora.models.prompt import MaskPrompt
from tangentlora.models.prototypes import Prototypes
from tangentlora.models.readouts import Readout
from tangentlora.models.targets import Target
from tangentlora.problem.losses import CrossEntropy
from tangentlora.problem.objective import Problem
from tangentlora.studies.bases import base_of
from tangentlora.studies.continued import Continued, continue_from
from tangentlora.studies.early import MEDIA_INPUTS, require_rank, require_ready
from tangentlora.studies.label_order import count_outputs, holds_head, in_head_order
from tangentlora.studies.notes import sentences
from tangentlora.studies.plan import Plan
from tangentlora.studies.planning import EncodedSet, plan_for
from tangentlora.studies.settings import Settings
from tangentlora.studies.task_data import load_task
from tangentlora.tangent.linearize import linearize
from tangentlora.tangent.tangent import Tangent


@dataclass(frozen=True)
class Prepared:
    """What every trial on one problem shares; the network is linearised once.

    `plan` is what was expected of it before, and `check` what was seen of the data. `start` is where solvers
    begin, and `saved` whole weights that belong to the adapter, both from an adapter to continue from. `cut`
    says of each set what did not fit into the network.
    """

    settings: Settings
    network: Network
    splits: Splits
    targets: tuple[Target, ...]
    train: Tangent
    test: Tangent | None
    problem: Problem
    plan: Plan
    check: DataCheck
    dev: Tangent | None = None
    start: Factors | None = None
    saved: dict[str, Tensor] = field(default_factory=dict)
    cut: dict[str, Cut] = field(default_factory=dict)

    @property
    def sets(self) -> dict[str, tuple[Tangent, Examples]]:
        """The sets that were linearised, by name, with their examples."""
        tangents = {"train": self.train, "dev": self.dev, "test": self.test}
        examples = self.splits.parts
        return {part: (t, examples[part]) for part, t in tangents.items() if t is not None}


def prepare(settings: Settings, *, dev: bool = False, test: bool = True, progress: bool = False) -> Prepared:
    """Load data and network, linearise the training and the test set, with `dev` that too; state the problem.

    It checks the data and plans before it linearises; with `progress` both are told on stderr, and what of
    the examples does not fit into the network. Without `test` the test set is left alone. Raises InputError
    where the store cannot fit on the disk or the run in memory, for anything in the data, the network or the
    targets that cannot be used, and for completions: their loss is linear in the outputs, so that the convex
    problem has no minimiser, or 0.
    """
    require_ready(settings)
    require_device(settings.device)
    splits = load_task(settings)
    if splits.task == COMPLETION:
        raise InputError(
            "got completions, whose loss is linear in the outputs, so that the convex problem has the "
            "minimiser 0 or none, expected classes: audit or compress an adapter on completions, or name a "
            "column of labels with --label-column"
        )
    if settings.init_from is None:
        network, splits = load_with_head(settings, splits)
        begun = Continued(network, tuple(network.targets(settings.target_modules, settings.layers)))
    else:
        adapter = read_adapter(settings.init_from)
        # A head that came with the adapter was trained on weights that must not be drawn anew.
        brought = brought_by(adapter)
        network, splits = load_with_head(settings, splits, brought if holds_head(brought.shapes) else None)
        begun = continue_from(adapter, network)
        _, notes = base_of(adapter, settings.model, settings.revision)
        if progress:
            print("\n".join([*notes, *network.notes]), file=sys.stderr)
    network, targets = begun.network, begun.targets
    require_rank(settings, [target.shape for target in targets])
    folder = settings.tangent_dir.expanduser().absolute()  # run.json names it, wherever it is read from

    idle = [part for part, used in (("dev", dev), ("test", test)) if not used]
    check = check_data(splits).leaving(*idle)
    wanted = {
        "train": splits.train,
        "test": splits.test if test else None,
        "dev": splits.dev if dev else None,
    }
    sets = {
        part: EncodedSet(examples.inputs, network.reader.encode(examples.inputs))
        for part, examples in wanted.items()
        if examples
    }
    cut = {part: found for part, each in sets.items() if (found := cut_of(each.features)) is not None}
    plan = plan_for(
        network,
        sets,
        targets,
        outputs=len(splits.task.labels),
        centred=True,  # all that the loss, cross-entropy, can tell
        batch_size=settings.batch_size,
        folder=folder,
        memory=settings.memory,
    )
    if progress:
        print(check.told(), *sentences(network, splits.task, cut), plan.text(), sep="\n", file=sys.stderr)
    plan.require()

    def tangent(part: str) -> Tangent | None:
        encoded = sets.pop(part, None)
        if encoded is None:
            return None
        return linearize(
            encoded.read_by(network),
            encoded.inputs,
            targets,
            batch_size=settings.batch_size,
            centred=True,
            store=folder,
            in_blocks=plan.reads_blocks,
            progress=progress,
        )

    train = tangent("train")
    assert train is not None
    tested, chosen_by = tangent("test"), tangent("dev")
    device = torch.device(settings.device)
    problem = Problem(
        train.jacobian.to(torch.float64, device),
        train.f0.to(device),
        torch.tensor(splits.train.labels, device=device),
        CrossEntropy(),
        settings.lam,
    )
    start = None
    if begun.start is not None:
        start = cast(begun.start, problem.f0)
    return Prepared(
        settings,
        network,
        splits,
        targets,
        train,
        tested,
        problem,
        plan,
        check,
        dev=chosen_by,
        start=start,
        saved=begun.saved,
        cut=cut,
    )


def load_with_head(
    settings: Settings,
    splits: Splits,
    brought: Brought | None = None,
    given: Sequence[str] | None = None,
) -> tuple[Network, Splits]:
    """Return the network that the settings name with the readout for these data, its probe fitted to them.

    The data come back with their labels numbered as those of a head that comes with the checkpoint, or is
    `brought` by an adapter. Raises InputError as `choose_readout`, `load_network`, `fit_linear_probe` and
    `in_head_order` do.
    """
    readout = choose_readout(settings, splits.task, splits.train, given)
    if isinstance(readout, ClassificationHead) and (readout.init == "checkpoint" or brought is not None):
        config = load_config(settings.model, settings.revision)
        shapes = {} if brought is None else brought.shapes
        outputs = max(count_outputs(splits.task, config, shapes), readout.num_labels)
        init = "checkpoint" if holds_head(shapes) else readout.init  # a probe would be overwritten
        readout = replace(readout, num_labels=outputs, init=init)
    network = load_network(
        settings.model,
        readout,
        revision=settings.revision,
        dtype=settings.dtype,
        device=settings.device,
        brought=brought,
    )
    if not isinstance(readout, ClassificationHead):
        return network, splits
    if readout.init == "probe":
        inputs, labels = splits.train.inputs, splits.train.labels
        network = fit_linear_probe(network, inputs, labels, batch_size=settings.batch_size)
    if readout.init == "checkpoint" or brought is not None:
        splits = in_head_order(network, splits)
    return network, splits


def brought_by(adapter: Adapter) -> Brought:
    """Return what an adapter brings along for the network that it is put on."""
    return Brought({name: tuple(t.shape) for name, t in adapter.saved.items()}, adapter.folder)


def choose_readout(
    settings: Settings, task: Task, train: Examples, given: Sequence[str] | None = None
) -> Readout:
    """Return the readout that the settings name; `auto` takes what the checkpoint was trained for.

    A masked or a causal language model is read by a prompt, a bare text encoder by prototypes, and everything
    else by a classification head; completions are read by their likelihood. Raises InputError where the
    readout does not suit the data or its labels, and for `given` settings that have no say with it, by
    default those that differ from their defaults.
    """
    given = settings.given if given is None else given
    kind = settings.readout
    if task == COMPLETION:
        if kind != "auto":
            raise InputError(
                f"got --readout {kind} for completions, expected their likelihood: leave --readout out"
            )
        refuse_unused(given, {"readout": "completions"})
        return Completion(settings.max_length)
    if kind == "auto":
        kind = native_readout(settings.model, settings.revision) if train.modality == "text" else "head"
    if kind != "head" and train.modality != "text":
        raise InputError(
            f"got --readout {kind} for {train.modality} data, expected a classification head: use "
            "--readout head"
        )
    inputs = "text" if train.modality == "text" else MEDIA_INPUTS
    refuse_unused(given, {"readout": kind, "inputs": inputs})
    if kind == "prompt":
        words = _one_per_label(task, "--label-words", settings.label_words or task.label_words)
        prompt = CausalPrompt if is_causal(settings.model, settings.revision) else MaskPrompt
        return prompt(settings.template or task.template, words, max_length=settings.max_length)
    if kind == "prototypes":
        sentences = _one_per_label(task, "--prototypes", settings.prototypes or task.prototypes)
        return Prototypes(sentences, max_length=settings.max_length)
    return ClassificationHead(
        len(task.labels),
        init=settings.head_init,
        modality=train.modality,
        max_length=settings.max_length,
        seed=settings.seed,
    )


def _one_per_label(task: Task, option: str, given: tuple[str, ...]) -> tuple[str, ...]:
    if len(given) != len(task.labels):
        raise InputError(
            f"got {len(given)} {option[2:].replace('-', ' ')} for the {len(task.labels)} labels "
            f"{', '.join(task.labels)}, expected one for each, in that order: correct {option}"
        )
    return given


def scores(z: Float[Tensor, "N K"], labels: Sequence[int], which: str) -> dict[str, float]:
    """Return accuracy in [0, 1] and mean cross-entropy in nats of outputs z, named `train_…` or `test_…`."""
    y = torch.tensor(labels)
    loss = CrossEntropy().value(z.double().cpu(), y).mean()
    return {
        f"{which}_accuracy": float((z.cpu().argmax(1) == y).double().mean()),
        f"{which}_loss": float(loss),
    }
