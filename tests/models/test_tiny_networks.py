"""The tiny networks behave as tests of Jacobians need: deterministic, example by example, not degenerate."""

from __future__ import annotations

import pytest
import torch

import tiny_networks


@pytest.mark.parametrize("kind", tiny_networks.KINDS)
def test_outputs_are_deterministic_and_separate(kind):
    module, tensors, outputs = tiny_networks.NETWORKS[kind]()
    with torch.no_grad():
        z = outputs(tensors)
        assert z.shape == (3, 3)
        assert torch.equal(z, outputs(tensors))
        assert z.std(dim=0).min() > 0.01
        for i in range(3):
            alone = outputs({name: tensor[i : i + 1] for name, tensor in tensors.items()})
            torch.testing.assert_close(alone[0], z[i], rtol=1e-5, atol=1e-5)
    assert not module.training


@pytest.mark.parametrize("kind", tiny_networks.KINDS)
def test_building_is_seeded_and_leaves_the_random_numbers_alone(kind):
    state = torch.random.get_rng_state()
    first, second = tiny_networks.tiny_module(kind), tiny_networks.tiny_module(kind)
    assert torch.equal(state, torch.random.get_rng_state())
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_kinds_differ_in_length_where_they_can():
    for kind in ("bert", "gpt2", "wav2vec2"):
        _, tensors, _ = tiny_networks.NETWORKS[kind]()
        assert len(set(tensors["attention_mask"].sum(dim=1).tolist())) == 3
