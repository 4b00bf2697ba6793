"""An adapter with the network it belongs to and the data it is asked about."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from tangentlora.adapters import (
    Adapter,
    adapter_of,
    bare,
    fitted,
    read_adapter,
    trained_in_place,
    with_saved,
)
from tangentlora.belongs import refuse_unused, used_only
from tangentlora.blocks import Factors
from tangentlora.data import COMPLETION, DataCheck, Splits, check_data
from tangentlora.errors import InputError
from tangentlora.models.classification import ClassificationHead
from tangentlora.models.completion import Completion
from tangentlora.models.fresh import Fresh, fresh_base
from tangentlora.models.lengths import Cut, cut_of
from tangentlora.models.load import network_from_module
from tangentlora.models.network import Network
from tangentlora.models.readouts import Readout
from tangentlora.models.targets import Target
from tangentlora.places import model_place
from tangentlora.problem.losses import CrossEntropy, Likelihood, Loss
from tangentlora.studies.bases import base_of
from tangentlora.studies.earlier import completed
from tangentlora.studies.early import MEDIA_INPUTS, refuse_data, refuse_live, require_adapter
from tangentlora.studies.label_order import in_head_order
from tangentlora.studies.notes import tell_cut
from tangentlora.studies.prepare import brought_by, load_with_head
from tangentlora.studies.reopen import READOUTS
from tangentlora.studies.settings import Settings
from tangentlora.studies.task_data import load_task

_OURS = (
    *("model", "revision", "dtype", "readout", "template", "label_words", "prototypes", "head_init"),
    *("max_length", "data", "task", "text_column", "label_column", "label_pattern", "shots", "data_seed"),
    *("test_limit", "test_data", "dev_data", "test_fraction", "lam", "seed"),
)
"""What an adapter of our own takes from the run.json beside it, unless it is said otherwise."""

_DRAWS = ("shots", "test_data", "dev_data", "test_fraction")
"""Of these, what belongs to the data that it names."""

_VOCABULARY = {"embed_tokens", "lm_head", "wte", "word_embeddings", "embed_in", "embed_out", "shared"}
"""What embeds tokens or gives their logits: an adapter that saved no other module has no head of classes."""


@dataclass(frozen=True, eq=False)
class Opened:
    """A base network W, an update δ_t = u_t v_tᵀ of it, and examples; the network is at W, not at W + δ.

    `factors` are u = √s·B and v = √s·Aᵀ, so that w/2 (‖A‖² + ‖B‖²) = λ/2 (‖u‖² + ‖v‖²) with λ = w/s.
    `recorded_lam` is the λ of the run of ours that the adapter came from, None for others. `notes` are
    sentences that belong beside every number about it. `fresh` loads the base anew, where the network here
    lives in somebody's program and may hold more than its files; None where it was just loaded.
    """

    network: Network
    targets: tuple[Target, ...]
    factors: Factors
    adapter: Adapter
    splits: Splits
    recorded_lam: float | None = None
    notes: tuple[str, ...] = ()
    fresh: Callable[[], Fresh] | None = None

    @cached_property
    def check(self) -> DataCheck:
        """What is to be said of the data before any work."""
        return check_data(self.splits)

    @property
    def loss(self) -> Loss:
        """The loss that the data call for: cross-entropy of labels, or the likelihood of completions."""
        return Likelihood() if self.splits.task == COMPLETION else CrossEntropy()

    def cut(self, *, progress: bool = False) -> dict[str, Cut]:
        """Return what of the training and the test set does not fit; with `progress` say it on stderr too."""
        cut = {}
        for part, examples in self.splits.parts.items():
            found = None if part == "dev" else cut_of(self.network.reader.encode(examples.inputs))
            if found is not None:
                cut[part] = found
        if progress:
            tell_cut(cut)
        return cut


@contextmanager
def open_adapter(
    path: str | Path, given: Mapping[str, Any], splits: Splits | None = None
) -> Iterator[Opened]:
    """Read an adapter folder or hub id, its base network and the data; `given` are fields of `Settings`.

    `splits` are the data themselves, where they are at hand.

    What is not given comes from the run.json beside an adapter that `fit` wrote; else the network is the base
    model that the adapter names, read by the head where the adapter or its task type has one, and as
    `choose_readout` does otherwise. What that network lacks must come with the adapter, and the tokenizer or
    processor is the one beside the adapter, where it differs. Labels are numbered as the head numbers them.
    Raises InputError in the cases of `read_adapter`, `fitted`, `with_saved`, `load_network`, `load_splits`
    and `in_head_order`, and where neither the adapter nor `given` names a base model that is there.
    """
    require_adapter(path, given)
    if splits is not None:
        refuse_data(given)
    adapter = read_adapter(path, revision=None)
    _require_readable(adapter, given.get("readout"))
    recorded = _recorded(Path(path))
    lam = recorded.pop("lam", None)  # no setting: it may be 0, which the default solver refuses
    if given.get("data", recorded.get("data")) != recorded.get("data"):  # then its draws are not these data's
        recorded = {name: value for name, value in recorded.items() if name not in _DRAWS}
    if "test_data" in given or "test_fraction" in given:  # one of them, and the caller's
        recorded = {k: value for k, value in recorded.items() if k not in ("test_data", "test_fraction")}
    told = _told(adapter) | recorded
    if "model" in given and given["model"] != told["model"]:
        told.pop("revision", None)  # which is the other network's
    if "readout" in given and given["readout"] != told.get("readout"):
        told = used_only(told, {"readout": given["readout"]})
    values = told | dict(given)
    values["model"], notes = base_of(adapter, values.get("model"), values.get("revision"))
    if splits is None and not values.get("data"):
        raise InputError(
            f"got the adapter {adapter.name} without data, expected examples like those it was trained on: "
            "give --data"
        )
    if "revision" not in given and model_place(values["model"]) != "hub":
        values.pop("revision", None)  # of the name that the adapter knew the network by
    settings = Settings(**values)
    splits = load_task(settings) if splits is None else splits
    # The head of a run of ours is drawn or fitted again as it was then.
    network, splits = load_with_head(
        settings, splits, None if recorded else brought_by(adapter), tuple(given)
    )
    fit = fitted(adapter, network.module)
    with with_saved(network, fit.adapter) as base:
        yield Opened(base, fit.targets, fit.factors, fit.adapter, splits, lam, (*notes, *base.notes))


@contextmanager
def open_live(
    model: nn.Module, processor: Any, readout: Readout, splits: Splits, adapter_name: str | None = None
) -> Iterator[Opened]:
    """Open a live PEFT model with an adapter in it, without a copy of its weights; it stays as it is.

    It is the active adapter, unless another is named. `processor` is its tokenizer, image processor or
    feature extractor. Raises InputError as `adapter_of`, the readout and `in_head_order` do.
    """
    adapter = adapter_of(model, adapter_name)
    trained = trained_in_place(model)
    with bare(model) as module:
        network = network_from_module(module, processor, readout, name=adapter.name)
        splits = in_head_order(network, splits)
        fit = fitted(adapter, module)

        def fresh() -> Fresh:
            return fresh_base(module, processor, readout, adapter.base_model, adapter.revision, trained)

        with with_saved(network, fit.adapter) as base:
            yield Opened(base, fit.targets, fit.factors, fit.adapter, splits, fresh=fresh)


@contextmanager
def open_any(
    adapter: nn.Module | str | Path,
    data: Splits | str,
    given: Mapping[str, Any],
    *,
    processor: Any = None,
    readout: Readout | str | None = None,
    adapter_name: str | None = None,
) -> Iterator[Opened]:
    """Open what the Python interface takes: a live PEFT model, or an adapter folder or hub id.

    A live model needs its `processor`; its `readout` is by default the likelihood of completions, and the
    model's own classification head for all else. `adapter_name` is needed where several adapters are active.
    For a folder they come from the files, and `readout` may be the name of one, as in `Settings`.
    Raises InputError as `open_live` and `open_adapter` do, and where these do not go together.
    """
    if not isinstance(adapter, nn.Module):
        if processor is not None or isinstance(readout, Readout):
            raise InputError(
                f"got a processor or a readout object for the adapter folder {adapter}, expected them only "
                "with a live PeftModel: name the readout by its settings, such as readout='head'"
            )
        if adapter_name is not None:
            raise InputError(
                f"got the adapter name {adapter_name!r} for the folder {adapter}, expected it only with a "
                "live PeftModel: give the folder of that adapter, which PEFT names after it"
            )
        named = {**given} | ({} if readout is None else {"readout": readout})
        named |= {} if isinstance(data, Splits) else {"data": data}
        with open_adapter(adapter, named, data if isinstance(data, Splits) else None) as opened:
            yield opened
        return
    if processor is None or isinstance(readout, str):
        raise InputError(
            "got a live PeftModel without its processor or with a readout by name, expected its tokenizer, "
            "image processor or feature extractor, and a readout object: give processor= and readout="
        )
    refuse_live(given, by_name=isinstance(data, str), readout=readout is not None)
    extractor = getattr(processor, "feature_extractor", processor)
    rate = getattr(extractor, "sampling_rate", None)
    splits = data if isinstance(data, Splits) else load_task(Settings(**{**given, "data": data}), rate)
    inputs = "text" if splits.train.modality == "text" else MEDIA_INPUTS
    refuse_unused(given, {"inputs": inputs})
    limit = given.get("max_length")
    if readout is None and splits.task == COMPLETION:
        readout = Completion(limit)
    elif readout is None:
        base: Any = adapter
        config = base.get_base_model().config if hasattr(base, "get_base_model") else None
        outputs = max(len(splits.task.labels), getattr(config, "num_labels", 0))
        readout = ClassificationHead(outputs, modality=splits.train.modality, max_length=limit)
    with open_live(adapter, processor, readout, splits, adapter_name) as opened:
        yield opened


_OTHER_TASKS = {
    "TOKEN_CLS": "labels every token",
    "QUESTION_ANS": "finds the answer to a question in a text",
    "SEQ_2_SEQ_LM": "writes a text for a text",
}
"""Task types of PEFT whose outputs are not a few numbers per example."""

_BY_PROMPT = (
    ", or, on the masked language model that it was trained from, ask for its effect on a prompt by naming "
    "that readout"
)


def _require_readable(adapter: Adapter, readout: str | None) -> None:
    """Refuse an adapter of a task that no readout stands for, unless it is to be read by another one."""
    does = _OTHER_TASKS.get(adapter.task_type or "")
    if does is not None and readout not in ("prompt", "prototypes"):
        # a masked language model has the layers of these tasks' networks, but none of their heads
        instead = "" if adapter.saved or adapter.task_type == "SEQ_2_SEQ_LM" else _BY_PROMPT
        raise InputError(
            f"got the adapter {adapter.name} of the task type {adapter.task_type}, which {does}, expected "
            "one for classes of whole texts (SEQ_CLS) or for the next token (CAUSAL_LM): take such an "
            f"adapter{instead}"
        )


def _told(adapter: Adapter) -> dict[str, Any]:
    """Return the settings that the adapter itself tells."""
    told: dict[str, Any] = {"model": adapter.base_model, "revision": adapter.revision}
    vocabulary = all(name.split(".")[-2] in _VOCABULARY for name in adapter.saved if "." in name)
    if adapter.task_type == "SEQ_CLS" or (adapter.task_type is None and not vocabulary):
        told["readout"] = "head"
    # a head, where one is read, came with the adapter or with the network
    return told | {"head_init": "checkpoint"}


def _recorded(path: Path) -> dict[str, Any]:
    """Return the settings of the run of ours that the adapter folder lies in; none for other adapters."""
    run = path.parent / "run.json"
    if not (path / "adapter_config.json").exists() or not run.is_file():
        return {}
    try:
        configuration = completed(json.loads(run.read_text(encoding="utf-8"))["configuration"])
        known = {name: configuration[name] for name in _OURS if name in configuration}
        known["readout"] = READOUTS[known["readout"]["readout"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"got {run}, which cannot be read ({type(error).__name__}: {error}), expected the file that fit "
            "wrote: move the adapter out of that folder, or run fit again"
        ) from error
    return {key: tuple(value) if isinstance(value, list) else value for key, value in known.items()}
