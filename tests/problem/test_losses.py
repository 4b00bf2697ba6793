from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from random_problems import random_problem
from tangentlora.errors import InputError
from tangentlora.problem.losses import Contrasted, CrossEntropy, Likelihood, Logistic, Loss, Squared
from tangentlora.problem.objective import Problem

N = 20


def contrasted(n_outputs: int) -> Contrasted:
    return Contrasted(CrossEntropy(), CrossEntropy().contrasts(n_outputs))


CASES: dict[str, tuple[Loss, int]] = {
    **{f"cross_entropy {k}": (CrossEntropy(), k) for k in range(2, 7)},
    **{f"contrasted {k}": (contrasted(k), k - 1) for k in range(2, 7)},
    "logistic": (Logistic(), 1),
    **{f"squared {k}": (Squared(), k) for k in (1, 4)},
    "likelihood": (Likelihood(), 1),
}


def labels(loss: Loss, width: int, count: int = N) -> Tensor:
    if isinstance(loss, Logistic):
        return torch.arange(count) % 2 * 2 - 1
    if isinstance(loss, Squared):
        return torch.randn(count, width, dtype=torch.float64)
    if isinstance(loss, Likelihood):
        return torch.zeros(count, dtype=torch.int64)
    return torch.arange(count) % (loss.C.shape[1] if isinstance(loss, Contrasted) else width)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Loss, Tensor, Tensor]:
    """A loss with outputs (N,K) and labels."""
    loss, width = CASES[request.param]
    return loss, 2 * torch.randn(N, width, dtype=torch.float64), labels(loss, width)


def test_gradient_and_hessian_product_are_those_of_autograd(case: tuple[Loss, Tensor, Tensor]) -> None:
    loss, z, y = case
    d = torch.randn_like(z)
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(loss.value(z, y).sum(), z, create_graph=True)
    slope = (gradient * d).sum() + 0 * z.sum()  # on the graph for a loss that is linear, too
    product = torch.autograd.grad(slope, z)[0]
    torch.testing.assert_close(loss.gradient(z, y), gradient, rtol=0, atol=1e-10)
    torch.testing.assert_close(loss.hessian_product(z, y, d), product, rtol=0, atol=1e-10)


def test_fenchel_young_holds_with_equality_at_the_gradient(case: tuple[Loss, Tensor, Tensor]) -> None:
    loss, z, y = case
    a = loss.gradient(z, y)
    torch.testing.assert_close(loss.conjugate(a, y), (a * z).sum(1) - loss.value(z, y), rtol=0, atol=1e-12)
    elsewhere = z + torch.randn_like(z)
    assert (loss.conjugate(a, y) + loss.value(elsewhere, y) >= (a * elsewhere).sum(1) - 1e-12).all()


def test_the_conjugate_is_the_supremum(case: tuple[Loss, Tensor, Tensor]) -> None:
    loss, z, y = case
    if isinstance(loss, Likelihood):
        pytest.skip("its conjugate is finite at one point, where z cancels")
    shrunk = 0.7 * loss.gradient(z, y)  # inside the domain, and the gradient of another point
    for i in range(6):
        one, a = y[i : i + 1], shrunk[i]

        def value(point: np.ndarray, one: Tensor = one, a: Tensor = a) -> float:
            at = torch.from_numpy(point)
            return float(loss.value(at.unsqueeze(0), one) - a @ at)

        def slope(point: np.ndarray, one: Tensor = one, a: Tensor = a) -> np.ndarray:
            return (loss.gradient(torch.from_numpy(point).unsqueeze(0), one)[0] - a).numpy()

        supremum = -minimize(value, np.zeros(z.shape[1]), jac=slope, method="BFGS", tol=1e-10).fun
        assert float(loss.conjugate(a.unsqueeze(0), one)) == pytest.approx(supremum, abs=1e-8)


OUTSIDE = [
    (CrossEntropy(), 0, [0.2, -0.1, -0.2]),  # q does not add up to one
    (CrossEntropy(), 0, [0.1, -0.1, 0.0]),  # q_0 above one
    (CrossEntropy(), 1, [0.5, -1.1, 0.6]),  # q_1 below zero
    (contrasted(3), 1, [1.5, 0.0]),
    (Logistic(), 1, [0.01]),
    (Logistic(), 1, [-1.01]),
    (Logistic(), -1, [-0.01]),
    (Logistic(), -1, [1.01]),
]


@pytest.mark.parametrize(("loss", "label", "a"), OUTSIDE)
def test_outside_its_domain_the_conjugate_is_infinite(loss: Loss, label: int, a: list[float]) -> None:
    y, point = torch.tensor([label]), torch.tensor([a], dtype=torch.float64)
    assert float(loss.conjugate(point, y)) == math.inf
    # ⟨a, z⟩ − ℓ(z) grows without bound along one of a few rays
    rays = [sign * ray for ray in [*torch.eye(len(a)), torch.ones(len(a))] for sign in (1, -1)]
    heights = [
        [float((point * t * ray).sum() - loss.value(t * ray.double().unsqueeze(0), y)) for t in (1e3, 1e6)]
        for ray in rays
    ]
    assert any(far > 1e3 and far > 100 * near for near, far in heights)


def test_on_the_border_the_conjugate_is_finite() -> None:
    y = torch.tensor([0])
    vertex = torch.tensor([[-1.0, 1.0, 0.0]], dtype=torch.float64)
    assert float(CrossEntropy().conjugate(vertex, y)) == 0
    assert float(CrossEntropy().conjugate(0 * vertex, y)) == 0
    assert float(CrossEntropy().conjugate(vertex * (1 + 1e-15), y)) == pytest.approx(0, abs=1e-12)
    for a in (0.0, -1.0, -1.0 - 1e-15):
        point = torch.tensor([[a]], dtype=torch.float64)
        assert float(Logistic().conjugate(point, torch.tensor([1]))) == pytest.approx(0, abs=1e-12)


def test_smoothness_bounds_the_hessian_and_is_attained(case: tuple[Loss, Tensor, Tensor]) -> None:
    loss, z, y = case
    tied = z - 60.0
    tied[:, 0] = 0.0  # all the mass on one or two outputs
    tied[:, -1] = 0.0
    points = torch.cat([z, tied] if not isinstance(loss, Contrasted) else [z, tied @ loss.C[:, :-1].T])
    twice = torch.cat([y, y])
    columns = [
        loss.hessian_product(points, twice, e.expand_as(points)) for e in torch.eye(z.shape[1]).double()
    ]
    values = torch.linalg.eigvalsh(torch.stack(columns, 2))
    assert values.min() > -1e-12
    assert values.max() <= loss.smoothness * (1 + 1e-12)
    if not isinstance(loss, Contrasted):
        assert values.max() >= 0.999 * loss.smoothness


def test_contrasts_keep_the_smoothness() -> None:
    p = torch.tensor([[40.0, 40.0, 0.0, 0.0]], dtype=torch.float64)
    loss = contrasted(4)
    d = torch.tensor([[1.0, -1.0, 0.0, 0.0]], dtype=torch.float64) @ loss.C.T
    product = loss.hessian_product(p @ loss.C.T, torch.tensor([0]), d)
    assert float((product * d).sum() / d.square().sum()) == pytest.approx(loss.smoothness, rel=1e-12)


@pytest.mark.parametrize(
    ("loss", "width"), [(CrossEntropy(), 3), (contrasted(3), 2), (Logistic(), 1), (Likelihood(), 1)]
)
def test_the_lipschitz_constant_bounds_the_gradient_and_is_nearly_attained(loss: Loss, width: int) -> None:
    y = labels(loss, width, 500)
    norms = loss.gradient(10 * torch.randn(500, width, dtype=torch.float64), y).norm(dim=1)
    assert norms.max() <= loss.lipschitz * (1 + 1e-12)
    assert norms.max() >= 0.999 * loss.lipschitz
    assert Squared().lipschitz == math.inf


@pytest.mark.parametrize("k", range(2, 7))
def test_contrasts_are_orthonormal_and_lose_nothing(k: int) -> None:
    C = CrossEntropy().contrasts(k)
    torch.testing.assert_close(C @ C.T, torch.eye(k - 1).double(), rtol=0, atol=1e-14)
    torch.testing.assert_close(C.sum(1), torch.zeros(k - 1).double(), rtol=0, atol=1e-14)
    z, y = 5 * torch.randn(N, k, dtype=torch.float64), torch.arange(N) % k
    seen = contrasted(k)
    torch.testing.assert_close(CrossEntropy().value(z @ C.T @ C, y), CrossEntropy().value(z, y))
    torch.testing.assert_close(seen.value(z @ C.T, y), CrossEntropy().value(z, y))
    a = CrossEntropy().gradient(z, y)
    torch.testing.assert_close(seen.conjugate(a @ C.T, y), CrossEntropy().conjugate(a, y))
    assert Logistic().contrasts(1) is None
    assert Squared().contrasts(k) is None
    assert (seen.name, seen.smoothness, seen.lipschitz) == ("cross_entropy", 0.5, math.sqrt(2))


@pytest.mark.parametrize("margin", [-800.0, -25.0, -19.0, 0.0, 3.0, 25.0, 800.0])
def test_values_are_right_far_from_zero(margin: float) -> None:
    exact = mpmath.log1p(mpmath.exp(-mpmath.mpf(margin)))
    for y in (-1, 1):
        z = torch.tensor([[y * margin]], dtype=torch.float64)
        assert float(Logistic().value(z, torch.tensor([y]))) == pytest.approx(
            float(exact), rel=1e-15, abs=1e-300
        )
    pair = torch.tensor([[margin, 0.0]], dtype=torch.float64)
    assert float(CrossEntropy().value(pair, torch.tensor([0]))) == pytest.approx(
        float(exact), abs=1e-15 * abs(margin)
    )


BAD_LABELS = [
    (
        CrossEntropy(),
        torch.tensor([0.0, 1.0]),
        2,
        3,
        "got the label 0.0 for 3 outputs, expected whole numbers from 0 to 2",
    ),
    (CrossEntropy(), torch.tensor([0, 3]), 2, 3, "got the label 3 for 3 outputs"),
    (CrossEntropy(), torch.tensor([-1, 0]), 2, 3, "got the label -1 for 3 outputs"),
    (CrossEntropy(), torch.tensor([0, 1, 2]), 2, 3, r"got labels of shape \(3,\), expected \(2,\)"),
    (CrossEntropy(), torch.tensor([[0], [1]]), 2, 3, r"got labels of shape \(2, 1\), expected \(2,\)"),
    (CrossEntropy(), torch.tensor([0, 0]), 2, 1, "got one output for cross-entropy, expected at least two"),
    (contrasted(3), torch.tensor([0, 3]), 2, 2, "got the label 3 for 3 outputs"),
    (Logistic(), torch.tensor([0, 1]), 2, 1, "got labels other than −1 and 1, expected those two"),
    (Logistic(), torch.tensor([1, -1]), 2, 2, "got 2 outputs for the logistic loss, expected one"),
    (Logistic(), torch.tensor([1]), 2, 1, r"got labels of shape \(1,\), expected \(2,\)"),
    (Logistic(), torch.tensor([1.0, math.nan]), 2, 1, "got labels other than −1 and 1"),
    (Likelihood(), torch.tensor([0, 1]), 2, 1, "got labels other than 0 for the likelihood"),
    (
        Likelihood(),
        torch.tensor([0, 0]),
        2,
        2,
        "got 2 outputs for the likelihood, expected one: use cross-en",
    ),
    (Likelihood(), torch.tensor([0]), 2, 1, r"got labels of shape \(1,\), expected \(2,\)"),
    (Squared(), torch.tensor([1.0, 2.0]), 2, 1, r"got labels of shape \(2,\), expected \(2, 1\)"),
    (Squared(), torch.tensor([[1.0], [math.inf]]), 2, 1, "got a target that is not finite, expected numbers"),
]


@pytest.mark.parametrize(("loss", "y", "n_examples", "n_outputs", "message"), BAD_LABELS)
def test_labels_that_do_not_fit_are_refused(
    loss: Loss, y: Tensor, n_examples: int, n_outputs: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        loss.check_labels(y, n_examples, n_outputs)


def test_labels_that_fit_are_accepted() -> None:
    for loss, width in CASES.values():
        loss.check_labels(labels(loss, width), N, width)
    Logistic().check_labels(torch.tensor([1.0, -1.0]), 2, 1)
    CrossEntropy().check_labels(torch.tensor([0, 1], dtype=torch.uint8), 2, 2)


def test_the_likelihood_is_linear_and_only_its_slope_has_a_conjugate() -> None:
    z, y = torch.tensor([[-3.0], [0.0], [2.0]], dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
    assert Likelihood().value(z, y).tolist() == [3.0, 0.0, -2.0]
    a = torch.tensor([[-1.0], [-1.0 - 1e-15], [-0.999]], dtype=torch.float64)
    assert Likelihood().conjugate(a, y).tolist() == [0.0, 0.0, math.inf]
    assert Likelihood().contrasts(1) is None


def test_with_the_likelihood_only_a_large_enough_lam_has_a_minimiser() -> None:
    """The duality gap at δ = 0 is zero where λ ≥ max‖M‖₂, and infinite where the objective has no minimum."""
    given = random_problem(loss="logistic")
    at = Problem(given.jacobian, given.f0, torch.zeros_like(given.y), Likelihood(), lam=1.0)
    a = at.dual_point(at.f0)
    edge = max(float(torch.linalg.matrix_norm(M, 2)) for M in at.jacobian.adjoint(a).values())
    assert at.with_lam(1.001 * edge).dual_value(a) == pytest.approx(at.empirical_loss(at.f0), rel=1e-12)
    small = at.with_lam(0.999 * edge)
    assert small.dual_value(a) == -math.inf
    M = small.jacobian.adjoint(a)
    name = max(M, key=lambda layer: float(torch.linalg.matrix_norm(M[layer], 2)))
    u, _, vt = torch.linalg.svd(M[name])
    still = {
        layer: (torch.zeros(m, 1).double(), torch.zeros(n, 1).double())
        for layer, (m, n) in small.jacobian.shapes.items()
    }
    down = [small.objective({**still, name: (-size * u[:, :1], vt[:1].T)}) for size in (0.0, 1.0, 1e2, 1e4)]
    assert down == sorted(down, reverse=True)
    assert down[-1] < down[0] - 1e4 * 0.0009 * edge
