"""Outputs less their mean: the Jacobian that is held by its contrasts, and the passes that make it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fake_network import examples_of, fake_network, jacrev_blocks, relative_error, whole_batch
from pairs import TARGETS, inputs, mix, network_of
from random_jacobians import random_jacobian
from sharded_steps import arguments, products
from tangentlora.errors import InputError
from tangentlora.problem.losses import CrossEntropy
from tangentlora.problem.objective import Problem
from tangentlora.tangent import linearize as linearize_module
from tangentlora.tangent.capture import capture
from tangentlora.tangent.centred import CentredJacobian, helmert
from tangentlora.tangent.jacobian import Jacobian, in_memory
from tangentlora.tangent.linearize import linearize
from tangentlora.tangent.proof import prove
from tangentlora.tangent.shared_store import load_share
from tangentlora.tangent.store import load_tangent, save_tangent
from tangentlora.tangent.stored import StoredJacobian
from tangentlora.tangent.tangent import Tangent
from tangentlora.theory.certificate import certify
from tiny_networks import KINDS, NETWORKS, K


def less_mean(dense: torch.Tensor) -> torch.Tensor:
    return dense - dense.mean(1, keepdim=True)


@pytest.mark.parametrize("k", [2, 3, 7])
def test_the_contrasts_are_a_basis_of_what_sums_to_zero(k: int) -> None:
    C = helmert(k)
    assert C.shape == (k - 1, k)
    torch.testing.assert_close(C @ C.T, torch.eye(k - 1, dtype=torch.float64))
    torch.testing.assert_close(C.T @ C, torch.eye(k, dtype=torch.float64) - 1 / k)
    assert torch.equal(C, CrossEntropy().contrasts(k))


@pytest.mark.parametrize("seed", range(10))
def test_every_product_is_that_of_the_dense_jacobian_less_its_mean(seed: int) -> None:
    held = random_jacobian(seed)
    centred = CentredJacobian(held)
    k = centred.n_outputs
    assert k == held.n_outputs + 1
    whole = held.combine_outputs(helmert(k).T)
    given = arguments(whole)
    expected = products(whole, given)
    found = products(centred, given)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name != "nbytes" and not name.startswith("sizes"):
            torch.testing.assert_close(found[name], value)
    inside = centred.within(given["factors"]).dense()
    for name, dense in whole.within(given["factors"]).dense().items():
        torch.testing.assert_close(inside[name], dense)
    for name, dense in in_memory(centred, "a test").dense().items():
        torch.testing.assert_close(dense, less_mean(dense))
        # whatever the parts of a sum cancel, the sizes bound it
        assert (centred.extents[name].sizes >= whole.extents[name].sizes - 1e-12).all()
    a = given["a"]
    for name, extent in centred.extents.items():
        inner = (a @ centred.basis.T).abs() * held.extents[name].sizes
        assert float(inner.sum()) <= float((a.abs() * extent.sizes).sum()) + 1e-12


def test_its_contrasts_are_those_that_are_held() -> None:
    held = random_jacobian(3)
    centred = CentredJacobian(held)
    assert centred.combine_outputs(helmert(centred.n_outputs)) is held
    assert centred.to(torch.float32).combine_outputs(helmert(centred.n_outputs)).dtype == torch.float32
    C = torch.randn(2, centred.n_outputs, dtype=torch.float64)
    for name, dense in in_memory(centred.combine_outputs(C), "a test").dense().items():
        expected = torch.einsum("jk,ikmn->ijmn", C, in_memory(centred, "a test").dense()[name])
        torch.testing.assert_close(dense, expected)
    y = torch.zeros(centred.n_examples, dtype=torch.long)
    problem = Problem(centred, centred.zeros(), y, CrossEntropy(), 0.1)
    assert problem.contrasted.jacobian is held  # so that no second copy is made


@pytest.mark.parametrize("kind", ["bert", "gpt2", "vit", "wav2vec2"])
@pytest.mark.parametrize("layers", ["last", "all"])
def test_a_centred_tangent_is_that_of_jacrev_less_its_mean(kind: str, layers: str) -> None:
    assert kind in KINDS
    module, tensors, read = NETWORKS[kind]()
    network = fake_network(module, read)
    targets, examples = network.targets(layers=layers), examples_of(tensors)
    tangent = linearize(network, examples, targets, centred=True)
    assert tangent.centred
    assert not linearize(network, examples, targets).centred
    torch.testing.assert_close(tangent.f0, network.reader.outputs(tensors))
    found = in_memory(tangent.jacobian, "a test").dense()
    for name, expected in jacrev_blocks(network, tensors, targets).items():
        assert relative_error(found[name], less_mean(expected)) < 1e-5, name


def tiny() -> tuple[list[dict[str, torch.Tensor]], linearize_module.Network]:
    module, tensors, read = NETWORKS["bert"]()
    return examples_of(tensors), fake_network(module, read)


def test_it_takes_a_backward_pass_less(monkeypatch: pytest.MonkeyPatch) -> None:
    examples, network = tiny()
    monkeypatch.setattr(linearize_module, "prove", lambda *_, **__: None)
    passes, grad = 0, torch.autograd.grad

    def counted(*args: object, **kwargs: object) -> object:
        nonlocal passes
        passes += 1
        return grad(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.autograd, "grad", counted)
    for centred, expected in ((False, K), (True, K - 1)):
        passes = 0
        linearize(network, examples, batch_size=3, centred=centred)
        assert passes == expected


def test_the_certificate_is_that_of_all_outputs() -> None:
    examples, network = tiny()
    y = torch.tensor([0, 1, 2])
    certificates = []
    for centred in (False, True):
        tangent = linearize(network, examples, network.targets(layers="all"), centred=centred)
        problem = Problem(tangent.jacobian, tangent.f0, y, CrossEntropy(), 1e-3)
        generator = torch.Generator().manual_seed(0)
        factors = {
            name: (torch.randn(m, 2, generator=generator) / m, torch.randn(n, 2, generator=generator) / n)
            for name, (m, n) in tangent.jacobian.shapes.items()
        }
        certificates.append(certify(problem, factors))
    whole, centred_too = certificates
    # the two come from different float32 rows
    assert centred_too.objective == pytest.approx(whole.objective, rel=1e-6)
    assert centred_too.lower_bound == pytest.approx(whole.lower_bound, rel=1e-5)
    assert centred_too.constraints == whole.constraints
    assert centred_too.spectral_norms == pytest.approx(whole.spectral_norms, rel=1e-5)


def test_the_store_has_a_row_of_gradients_less_and_gives_the_same_back(tmp_path: Path) -> None:
    examples, network = tiny()
    made = linearize(network, examples, centred=True)
    kept = linearize(network, examples, centred=True, store=tmp_path)
    assert kept.key == made.key != linearize(network, examples).key
    (shard,) = (tmp_path / kept.key).glob("shard-*")
    for name, tensor in load_file(shard).items():
        if name.endswith("/g"):
            assert tensor.shape[1] == K - 1
    blocks = load_share(tmp_path / kept.key, in_blocks=True)
    save_tangent(made, tmp_path / "again")
    for read in (kept, blocks, replace(load_tangent(tmp_path / "again"), source=kept.source)):
        assert torch.equal(read.f0, made.f0)
        assert read.identity == made.identity
        assert isinstance(read.jacobian, CentredJacobian)
        torch.testing.assert_close(read.jacobian.gram(), made.jacobian.gram())
    assert isinstance(blocks.jacobian.contrasts, StoredJacobian)  # type: ignore[attr-defined]
    # a tangent that is centred by its identity may hold all outputs
    whole = Jacobian(in_memory(made.jacobian, "a test").layers)
    save_tangent(Tangent(made.f0, whole, made.targets, made.identity), tmp_path / "whole")
    again = load_tangent(tmp_path / "whole")
    torch.testing.assert_close(again.jacobian.gram(), made.jacobian.gram())
    assert [asdict(target) for target in again.targets] == [asdict(target) for target in made.targets]


def test_a_single_output_cannot_be_centred() -> None:
    module, tensors, read = NETWORKS["bert"]()
    network = fake_network(module, lambda batch: read(batch)[:, :1])
    with pytest.raises(InputError, match="got one output to be centred, expected at least two"):
        linearize(network, examples_of(tensors), centred=True)


def test_the_proof_says_no_to_gradients_that_are_not_the_contrasts() -> None:
    network = network_of(lambda pair, x: mix(pair.b(mix(pair.a(x)))))
    batch = whole_batch(network, inputs(4))
    right = capture(network, batch, TARGETS, centred=True)
    prove(network, batch, right, TARGETS, centred=True)
    for wrong in (
        replace(right, g={name: -g for name, g in right.g.items()}),
        replace(right, g={name: g.flip(1) if g.shape[1] > 1 else 1.01 * g for name, g in right.g.items()}),
    ):
        with pytest.raises(InputError, match="gradients of 'a' that differ"):
            prove(network, batch, wrong, TARGETS, centred=True)
    with pytest.raises(InputError, match="gradients of 'a' that differ"):
        prove(network, batch, right, TARGETS)
