"""The operator against its dense matrix, from both sides, over random ragged shapes."""

from __future__ import annotations

import jaxtyping
import pytest
import torch
from torch import Tensor

from random_jacobians import random_factors, random_jacobian
from tangentlora.blocks import Blocks, multiply
from tangentlora.tangent import gram as gram_module
from tangentlora.tangent.jacobian import Jacobian, concatenate
from tangentlora.tangent.layer_rows import LayerRows

SEEDS = range(12)


@pytest.fixture(params=SEEDS)
def jacobian(request: pytest.FixtureRequest, device: torch.device) -> Jacobian:
    return random_jacobian(request.param, device)


def random_blocks(jacobian: Jacobian) -> Blocks:
    return {
        name: torch.randn(shape, dtype=jacobian.dtype, device=jacobian.device)
        for name, shape in jacobian.shapes.items()
    }


def matrix_of(jacobian: Jacobian) -> Tensor:
    """Return the Jacobian as one (NK, Σ mn) matrix, built row by row from the definition."""
    n, k = jacobian.n_examples, jacobian.n_outputs
    columns = []
    for rows in jacobian.layers.values():
        xs, gs = rows.x.split(rows.counts.tolist()), rows.g.split(rows.counts.tolist())
        blocks = torch.zeros(n, k, *rows.shape, dtype=rows.x.dtype, device=rows.x.device)
        for i in range(n):
            for x, g in zip(xs[i], gs[i], strict=True):
                for o in range(k):
                    blocks[i, o] += torch.outer(g[o], x)
        columns.append(blocks.reshape(n * k, -1))
    return torch.cat(columns, dim=1)


def flat(blocks: Blocks) -> Tensor:
    return torch.cat([block.reshape(-1) for block in blocks.values()])


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_dense_is_the_sum_of_outer_products(jacobian: Jacobian) -> None:
    dense = jacobian.dense()
    for name, shape in jacobian.shapes.items():
        assert dense[name].shape == (jacobian.n_examples, jacobian.n_outputs, *shape)
    close(torch.cat([block.flatten(2).flatten(0, 1) for block in dense.values()], 1), matrix_of(jacobian))


def test_forward_and_adjoint_are_products_with_the_matrix(jacobian: Jacobian) -> None:
    J, delta, a = matrix_of(jacobian), random_blocks(jacobian), torch.randn_like(jacobian.zeros())
    close(jacobian.forward(delta).flatten(), J @ flat(delta))
    close(flat(jacobian.adjoint(a)), J.T @ a.flatten())


def test_forward_and_adjoint_are_adjoint_to_each_other(jacobian: Jacobian) -> None:
    delta, a = random_blocks(jacobian), torch.randn_like(jacobian.zeros())
    left, right = (jacobian.forward(delta) * a).sum(), flat(jacobian.adjoint(a)) @ flat(delta)
    scale = torch.linalg.norm(jacobian.forward(delta)) * torch.linalg.norm(a)
    assert abs(left - right) <= 1e-12 * max(1.0, float(scale))


def test_a_missing_layer_counts_as_zero(jacobian: Jacobian) -> None:
    delta = random_blocks(jacobian)
    first = next(iter(delta))
    padded = {name: block if name == first else torch.zeros_like(block) for name, block in delta.items()}
    close(jacobian.forward({first: delta[first]}), jacobian.forward(padded))
    close(jacobian.forward({}), jacobian.zeros())


@pytest.mark.parametrize("ranks", [(2, 0, 3), (0, 0, 0), (1,), ()])
def test_factors_act_as_their_product(jacobian: Jacobian, ranks: tuple[int, ...]) -> None:
    factors, a = random_factors(jacobian, ranks), torch.randn_like(jacobian.zeros())
    point, M = jacobian.at(factors), jacobian.adjoint(a)
    close(point.forward(), jacobian.forward(multiply(factors)))
    pairs = point.adjoint(a)
    assert pairs.keys() == factors.keys()
    for name, (u, v) in factors.items():
        close(pairs[name][0], M[name] @ v)
        close(pairs[name][1], M[name].T @ u)


@pytest.mark.parametrize("entries", [1, 2**25])
def test_gram_is_the_matrix_times_its_transpose(
    jacobian: Jacobian, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gram_module, "_ENTRIES", entries)
    J = matrix_of(jacobian)
    close(jacobian.gram(), J @ J.T)


def test_combine_outputs_combines_the_blocks(jacobian: Jacobian) -> None:
    C = torch.randn(3, jacobian.n_outputs)  # any precision and device
    combined = jacobian.combine_outputs(C).dense()
    for name, block in jacobian.dense().items():
        close(combined[name], torch.einsum("jk,ikmn->ijmn", C.to(block), block))


def test_select_reorders_and_repeats(jacobian: Jacobian) -> None:
    last = jacobian.n_examples - 1
    for index in ([last, 0, last], torch.tensor([0]), range(last, -1, -1), [], [-1]):
        chosen = jacobian.select(index)
        order = torch.as_tensor(index, dtype=torch.long)
        assert chosen.n_examples == len(order)
        for name, block in jacobian.dense().items():
            close(chosen.dense()[name], block[order])


def test_concatenate_undoes_a_split(jacobian: Jacobian) -> None:
    parts = [jacobian.select([i]) for i in range(jacobian.n_examples)]
    whole = concatenate(parts)
    assert whole.n_examples == jacobian.n_examples
    for name, rows in jacobian.layers.items():
        assert torch.equal(whole.layers[name].x, rows.x)
        assert torch.equal(whole.layers[name].g, rows.g)
        assert torch.equal(whole.layers[name].counts, rows.counts)


def test_only_keeps_some_layers(jacobian: Jacobian) -> None:
    name = list(jacobian.layers)[-1]
    delta = random_blocks(jacobian)
    close(jacobian.only([name]).forward({name: delta[name]}), jacobian.forward({name: delta[name]}))
    assert list(jacobian.only([name]).shapes) == [name]


def test_project_takes_coordinates_of_both_sides() -> None:
    jacobian = random_jacobian(3)
    for rows in jacobian.layers.values():
        m, n = rows.shape
        A, B = torch.randn(m, 2, dtype=torch.float64), torch.randn(n, 3, dtype=torch.float64)
        before = Jacobian({"": rows}).dense()[""]
        close(Jacobian({"": rows.project(B, A)}).dense()[""], A.T @ before @ B)
        close(Jacobian({"": rows.project(None, None)}).dense()[""], before)


def test_within_takes_coordinates_in_given_columns(jacobian: Jacobian) -> None:
    bases = random_factors(jacobian, (2, 0, 3))
    first = next(iter(bases))
    inner, blocks = jacobian.within(bases), jacobian.dense()
    assert list(inner.layers) == list(bases)
    for name, (A, B) in bases.items():
        close(inner.dense()[name], A.T @ blocks[name] @ B)
    assert list(jacobian.within({first: bases[first]}).layers) == [first]


def test_to_changes_the_precision_and_says_what_is_held(jacobian: Jacobian, device: torch.device) -> None:
    single = jacobian.to(torch.float32)
    assert (single.dtype, single.device.type) == (torch.float32, device.type)
    assert single.to(torch.float64, "cpu").device.type == "cpu"
    rows = single.layers["layer.0"]
    held = 4 * (rows.x.numel() + rows.g.numel()) + 8 * rows.counts.numel()
    assert single.only(["layer.0"]).nbytes == held
    close(single.to(torch.float64).forward({}), jacobian.zeros())


def test_shapes_that_contradict_each_other_are_refused() -> None:
    x, g, counts = torch.randn(5, 4), torch.randn(5, 2, 3), torch.tensor([2, 3])
    assert LayerRows(x, g, counts).shape == (3, 4)
    with pytest.raises(jaxtyping.TypeCheckError, match=r"LayerRows\.__init__"):
        LayerRows(x, g[:4], counts)
    with pytest.raises(jaxtyping.TypeCheckError, match=r"weighted"):
        LayerRows(x, g, counts).weighted(torch.randn(2))
