"""LoRA training against PEFT's own model in a plain loop, and a network that is afterwards as before."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from torch.nn import functional

from fake_network import examples_of, fake_network
from tangentlora.adapters import loaded_outputs, write_adapter
from tangentlora.adapters.train import train_lora, whole_weights
from tangentlora.errors import InputError
from tangentlora.models import MaskPrompt, network_from_module
from tangentlora.models.targets import Target
from tangentlora.models.update import updated
from tiny_networks import NETWORKS, tiny_module, tiny_processor

LABELS = (2, 0, 1)
TEXTS = ("a bright and funny film", "dull", "the story was not very good and slow of plot", "is it okay")
WORDS = ("terrible", "great", "okay")
USUAL = {
    "rank": 2,
    "alpha": 4.0,
    "learning_rate": 1e-2,
    "epochs": 3,
    "batch_size": 2,
    "weight_decay": 0.1,
    "seed": 7,
    "on_epoch": lambda epoch, factors: None,
}


def network_of(kind, dtype=torch.float64):
    module, tensors, read = NETWORKS[kind]()
    cast = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    network = fake_network(module.to(dtype), read)
    return network, examples_of(cast), whole_weights(module, network.targets(("query", "value"), "all"))


def prompted(kind):
    processor = tiny_processor(kind)
    module = tiny_module(kind, len(processor)).double()
    return network_from_module(module, processor, MaskPrompt("{text} It was {mask}.", WORDS), name=kind)


def state(module):
    return {
        "modules": [(name, id(child), child.training) for name, child in module.named_modules()],
        "parameters": [(name, id(p), p.requires_grad) for name, p in module.named_parameters()],
        "bits": {
            name: tensor.clone().view(torch.uint8).tolist() for name, tensor in module.state_dict().items()
        },
        "attributes": sorted(vars(module)),
        "hooks": [len(child._forward_hooks | child._forward_pre_hooks) for child in module.modules()],
        "configuration": module.config.to_dict(),
        "gradients": [p.grad for p in module.parameters()],
        "random": torch.get_rng_state().tolist(),
    }


def assert_same(found, expected, **tolerances):
    assert list(found) == list(expected)
    for name in expected:
        for one, other in zip(found[name], expected[name], strict=True):
            torch.testing.assert_close(one, other, **tolerances)


def plain_loop(network, tensors, targets, order):
    """Train a copy wrapped by PEFT on batches in the given order; return its model."""
    module = copy.deepcopy(network.module)
    names = [target.module for target in targets]
    with torch.random.fork_rng():
        torch.manual_seed(USUAL["seed"])
        model = peft.get_peft_model(
            module, peft.LoraConfig(r=2, lora_alpha=4, target_modules=names, lora_dropout=0.0)
        )
    model.eval()
    optimiser = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1
    )
    for step, rows in enumerate(order):
        optimiser.param_groups[0]["lr"] = 1e-2 * (1 - step / len(order))
        optimiser.zero_grad()
        logits = model(**{name: t[rows] for name, t in tensors.items()}).logits
        functional.cross_entropy(logits, torch.tensor(LABELS)[rows]).backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        norm = torch.sqrt(sum((p.grad**2).sum() for p in trained))
        for p in trained:
            p.grad /= max(1.0, float(norm) + 1e-6)
        optimiser.step()
    return module


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_training_is_that_of_peft_in_a_plain_loop():
    network, inputs, targets = network_of("bert")
    _, tensors, _ = NETWORKS["bert"]()
    shuffle = torch.Generator().manual_seed(USUAL["seed"])
    order = []
    for _ in range(USUAL["epochs"]):
        rows = torch.randperm(3, generator=shuffle).tolist()
        order += [rows[:2], rows[2:]]
    trained = plain_loop(network, tensors, targets, order)
    factors = train_lora(network, targets, inputs, LABELS, **USUAL)
    assert list(factors) == [target.name for target in targets]
    for name, (u, v) in factors.items():
        layer = trained.get_submodule(name)
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert u.shape == (32, 2)
        assert u.abs().max() > 1e-2
        torch.testing.assert_close(u, 2 * B.detach(), rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(v.T, A.detach(), rtol=1e-6, atol=1e-8)


def test_the_initialisation_is_peft_s_own():
    network, inputs, targets = network_of("bert")
    barely = USUAL | {"learning_rate": 1e-12, "epochs": 1}
    for u, v in train_lora(network, targets, inputs, LABELS, **barely).values():
        assert u.abs().max() < 1e-10
        assert 0.9 / math.sqrt(32) < v.abs().max() <= 1 / math.sqrt(32)


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_family_learns_and_the_network_is_as_before(kind, capfd):
    network, inputs, targets = network_of(kind, torch.float32)
    f0 = network.predict(inputs)
    before = state(network.module)  # some networks get their own hooks in the first call
    live = {}

    def keep(epoch, factors):
        live[epoch] = network.predict(inputs), factors

    factors = train_lora(network, targets, inputs, LABELS, **USUAL | {"epochs": 15, "on_epoch": keep})
    assert state(network.module) == before
    assert torch.equal(network.predict(inputs), f0)
    assert list(live) == list(range(1, 16))
    assert_same(live[15][1], factors, rtol=0, atol=0)
    y = torch.tensor(LABELS)
    losses = [functional.cross_entropy(z, y) for z in (f0, *(z for z, _ in live.values()))]
    assert losses[-1] < losses[0]
    for epoch in (1, 15):  # what was seen in passing is the network at W + uvᵀ
        with updated(network, targets, live[epoch][1]):
            torch.testing.assert_close(network.predict(inputs), live[epoch][0], rtol=1e-3, atol=1e-4)
    assert capfd.readouterr() == ("", "")


def test_the_network_is_as_before_also_after_an_interruption():
    network, inputs, targets = network_of("bert", torch.float32)
    network.module.bert.pooler.train()
    before = state(network.module)

    def interrupt(epoch, factors):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_lora(network, targets, inputs, LABELS, **USUAL | {"on_epoch": interrupt})
    after = state(network.module)
    assert after == before


def test_the_seed_decides():
    network, inputs, targets = network_of("bert", torch.float32)
    one = train_lora(network, targets, inputs, LABELS, **USUAL)
    torch.manual_seed(123)
    assert_same(train_lora(network, targets, inputs, LABELS, **USUAL), one, rtol=0, atol=0)
    other = train_lora(network, targets, inputs, LABELS, **USUAL | {"seed": 8})
    assert all((one[name][1] - other[name][1]).abs().max() > 1e-2 for name in one)


@pytest.mark.parametrize("modules", [("query", "value"), ("query", "output", "output.dense")])
@pytest.mark.parametrize("kind", ["bert-mlm", "roberta-mlm"])
def test_a_prompt_trains_through_the_mask_alone_as_through_the_whole_network(kind, modules):
    network = prompted(kind)
    assert network.reader.after_attention is not None
    targets = whole_weights(network.module, network.targets(modules, "all"))
    labels = (0, 1, 2, 1)
    ids, mask = list(network.reader.words), network.reader.tokens.tokenizer.mask_token_id

    def compare(epoch, factors):
        for batch in network.batches(network.reader.encode(TEXTS)):
            with torch.no_grad():
                whole = network.module(**batch.tensors).logits[batch.tensors["input_ids"] == mask][:, ids]
            torch.testing.assert_close(network.outputs(batch), whole, rtol=1e-9, atol=1e-9)

    found = train_lora(network, targets, TEXTS, labels, **USUAL | {"on_epoch": compare})
    slow = replace(network, reader=replace(network.reader, after_attention=None))
    assert_same(found, train_lora(slow, targets, TEXTS, labels, **USUAL), rtol=1e-5, atol=1e-8)


def test_the_result_is_a_peft_adapter(tmp_path: Path):
    network, inputs, targets = network_of("gpt2", torch.float32)
    factors = train_lora(network, targets, inputs, LABELS, **USUAL)
    folder = write_adapter(factors, targets, tmp_path, module=network.module, base_model="tiny")
    with updated(network, targets, factors):
        expected = network.predict(inputs)
    torch.testing.assert_close(loaded_outputs(network, folder, inputs), expected, rtol=1e-4, atol=1e-5)


def test_the_parts_of_a_fused_weight_are_one_whole():
    network, _, targets = network_of("gpt2")
    names = [f"transformer.h.{i}.attn.c_attn" for i in range(2)]
    assert targets == tuple(Target(name, name, (96, 32), transposed=True) for name in names)
    network, _, targets = network_of("bert")
    assert targets == tuple(network.targets(("query", "value"), "all"))


def test_parts_of_fused_weights_are_refused():
    network, inputs, _ = network_of("gpt2")
    parts = network.targets(("query",), "last")
    with pytest.raises(
        InputError, match=r"h\.1\.attn\.c_attn:query, a part of a fused weight.*whole_weights"
    ):
        train_lora(network, parts, inputs, LABELS, **USUAL)


@pytest.mark.parametrize(
    "change",
    [
        {"rank": 0},
        {"alpha": 0.0},
        {"learning_rate": 0.0},
        {"learning_rate": math.inf},
        {"epochs": 0},
        {"batch_size": 0},
        {"weight_decay": -0.1},
    ],
    ids=str,
)
def test_numbers_out_of_range_are_refused(change):
    network, inputs, targets = network_of("bert")
    with pytest.raises(InputError, match=r"got rank .* and weight decay .*, expected positive numbers"):
        train_lora(network, targets, inputs, LABELS, **USUAL | change)


@pytest.mark.parametrize("labels", [(0, 1), (0, 1, 3), (0, 1, -1)])
def test_labels_that_do_not_fit_are_refused(labels):
    network, inputs, targets = network_of("bert")
    with pytest.raises(InputError, match="labels for 3 examples and 3 outputs, expected one index below 3"):
        train_lora(network, targets, inputs, labels, **USUAL)
    with pytest.raises(InputError, match="got 0 labels for 0 examples"):
        train_lora(network, targets, [], [], **USUAL)


def test_a_reader_that_kept_hold_of_an_adapted_layer_is_refused():
    module, tensors, _ = NETWORKS["bert"]()
    classifier = module.classifier
    network = fake_network(module, lambda inputs: classifier(module.bert(**inputs).pooler_output))
    targets = network.targets(("query", "classifier"))
    before = state(module)
    with pytest.raises(InputError, match="readout of fake that does not use the adapter of classifier"):
        train_lora(network, targets, examples_of(tensors), LABELS, **USUAL)
    assert state(module) == before
