"""What an adapter brings along for its network: whole weights, a grown vocabulary, a tokenizer of its own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from tangentlora.errors import InputError
from tangentlora.models.names import current_names
from tangentlora.models.readouts import Readout

_MARKS = ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
"""Any of these says that a folder holds a tokenizer or processor."""
_FILES = ("*token*", "vocab.*", "merges.txt", "chat_template*", "*processor_config.json")
"""All that one may consist of."""


@dataclass(frozen=True, eq=False)
class Brought:
    """`shapes` of whole weights by the adapter's names for them; `folder` holds its processor, if any does.

    A network that is loaded for an adapter may lack these weights and no others.
    """

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def has_processor(self) -> bool:
        return self.folder is not None and any((self.folder / name).is_file() for name in _MARKS)

    def own_names(self, module: nn.Module) -> dict[str, tuple[int, ...]]:
        """Return the shapes by the network's own names; a weight that it does not have is left out."""
        names = current_names(module, self.shapes)
        return {own: self.shapes[name] for name, own in names.items()}

    def grow(self, module: Any) -> set[str]:
        """Give the network as many rows of embeddings as the adapter saved, where it has another number.

        Return the weights that have new rows, which are random until the adapter's own take their place.
        """
        try:
            embeddings = module.get_input_embeddings()
        except (AttributeError, NotImplementedError):  # networks over sound have none
            return set()
        if not isinstance(embeddings, nn.Embedding):
            return set()
        own, before = self.own_names(module), {name: p.shape for name, p in _named(module)}
        names = [f"{name}.weight" for name, child in module.named_modules() if child is embeddings]
        rows = next((own[name][0] for name in names if name in own), embeddings.num_embeddings)
        if rows == embeddings.num_embeddings:
            return set()
        module.resize_token_embeddings(rows, mean_resizing=False)
        return {name for name, p in _named(module) if p.shape != before[name]}

    def processor(self, readout: Readout, source: str, revision: str | None) -> tuple[Any, str | None]:
        """Return the processor to use and, where it is not the base's, the sentence that says so.

        Raises `InputError` where the files beside the adapter are no processor.
        """
        if self.folder is None or not self.has_processor:
            return readout.load_processor(source, revision), None
        try:
            own = readout.load_processor(str(self.folder), None)
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise InputError(
                f"got the adapter {self.folder} with files of a tokenizer or processor that cannot be loaded "
                f"({reason}), expected a whole one or none; save it again beside the adapter, or take its "
                "files away where the base model's own was used."
            ) from error
        try:
            base = readout.load_processor(source, revision)
        except Exception:  # a base without one: then the adapter's is the only one
            return own, f"The {_kind(own)} is the one beside the adapter, since the base model has none."
        differing = _differences(own, base)
        if not differing:
            return base, None
        return own, (
            f"The {_kind(own)} is the one beside the adapter, which differs from the base model's in its "
            f"{' and '.join(differing)}."
        )


def copy_processor(source: Path | None, folder: Path) -> None:
    """Copy the files of a tokenizer or processor that lies beside an adapter, if there is one."""
    if source is None or not Brought(folder=source).has_processor:
        return
    for pattern in _FILES:
        for path in source.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)


@contextmanager
def without_adapter(source: str) -> Iterator[str]:
    """Give a folder with the same files but those of an adapter, which transformers would load unasked."""
    folder = Path(source)
    if not (folder / "adapter_config.json").is_file():
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="tangentlora-") as view:
        for path in folder.resolve().iterdir():
            if not path.name.startswith("adapter_"):
                (Path(view) / path.name).symlink_to(path)
        yield view


def _named(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return module.named_parameters(remove_duplicate=False)


def _kind(processor: Any) -> str:
    return "tokenizer" if hasattr(processor, "get_vocab") else "processor"


def _differences(own: Any, base: Any) -> list[str]:
    """Return in what two processors differ, as words."""
    if not hasattr(own, "get_vocab") or not hasattr(base, "get_vocab"):
        return [] if _plain(own) == _plain(base) else ["settings"]
    given, theirs = own.get_vocab(), base.get_vocab()
    found = []
    if given != theirs:
        found.append(f"vocabulary ({len(given)} tokens, {len(theirs)} there)")
    if str(own.special_tokens_map) != str(base.special_tokens_map):
        found.append("special tokens")
    if getattr(own, "chat_template", None) != getattr(base, "chat_template", None):
        found.append("chat template")
    if not found and _rules(own) != _rules(base):
        found.append("rules")
    return found


def _plain(processor: Any) -> Any:
    return {k: v for k, v in processor.to_dict().items() if not k.startswith("_") and "class" not in k}


def _rules(tokenizer: Any) -> Any:
    """Return how a tokenizer splits, as text, and how many tokens it takes."""
    import json

    backend = getattr(tokenizer, "backend_tokenizer", None)
    # How texts were cut and padded last is no rule of the tokenizer's.
    rules = {} if backend is None else json.loads(backend.to_str()) | {"truncation": None, "padding": None}
    sides = (tokenizer.model_max_length, tokenizer.truncation_side)
    return rules, sides
