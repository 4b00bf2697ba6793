"""What each of several processes does in the tests of a shared Jacobian; the processes import it by name."""

from __future__ import annotations

import os
import signal
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from random_jacobians import random_factors, random_jacobian
from random_problems import random_problem
from tangentlora import processes
from tangentlora.blocks import Factors
from tangentlora.problem.objective import Problem
from tangentlora.solvers.certified import Certified
from tangentlora.solvers.descent import Descent
from tangentlora.solvers.proximal import Proximal
from tangentlora.solvers.solution import Record, Solver
from tangentlora.tangent.jacobian import Jacobian
from tangentlora.tangent.operator import Operator
from tangentlora.tangent.sharded import ShardedJacobian
from tangentlora.theory.certificate import certify

SOLVERS: dict[str, Solver] = {
    "certified": Certified(),
    "sgd": Descent(rank=3, epochs=30),
    "adamw": Descent(rank=2, epochs=15, method="adamw"),
    "lbfgs": Descent(rank=3, epochs=15, method="lbfgs"),
    "proximal": Proximal(epochs=20),
}


def share(whole: Jacobian) -> ShardedJacobian:
    """Return the Jacobian of which this process holds every p-th example, the last first."""
    index = torch.arange(whole.n_examples).flip(0)[processes.rank() :: processes.count()]
    return ShardedJacobian(whole.select(index), index, whole.n_examples)


def arguments(whole: Jacobian) -> dict[str, Any]:
    """Return seeded arguments for every product."""
    torch.manual_seed(3)
    first = next(iter(whole.shapes))
    return {
        "delta": {name: torch.randn(shape).to(whole.zeros()) for name, shape in whole.shapes.items()},
        "a": torch.randn(whole.n_examples, whole.n_outputs).to(whole.zeros()),
        "factors": random_factors(whole),
        "d": random_factors(whole),
        "C": torch.randn(2, whole.n_outputs).to(whole.zeros()),
        "scale": torch.randn(whole.n_examples, 1).to(whole.zeros()),
        "V": torch.randn(whole.shapes[first][1], 3).to(whole.zeros()),
        "U": torch.randn(whole.shapes[first][0], 3).to(whole.zeros()),
        "index": torch.randperm(whole.n_examples)[: max(1, whole.n_examples - 1)],
    }


def products(operator: Operator, given: dict[str, Any]) -> dict[str, Tensor]:
    """Return everything that an operator can be asked for."""
    first = next(iter(operator.shapes))
    point = operator.at(given["factors"])
    found: dict[str, Tensor] = {
        "forward": operator.forward(given["delta"]),
        "point": point.forward(),
        "differential": point.differential(given["d"]),
        "gram": operator.gram(),
        "combined": operator.combine_outputs(given["C"]).forward(given["delta"]),
        "single": operator.to(torch.float32).forward({n: w.float() for n, w in given["delta"].items()}),
        "nbytes": torch.tensor(operator.nbytes),
        "finite": torch.tensor(operator.is_finite()),
    }
    pairs = {"pairs": point.adjoint(given["a"])}
    pairs["curvature"] = point.curvature(given["d"], lambda z, i: z * given["scale"][i])
    found |= {
        f"{what} {n} {i}": w for what, p in pairs.items() for n, pair in p.items() for i, w in enumerate(pair)
    }
    found |= {f"M {name}": M for name, M in operator.adjoint(given["a"]).items()}
    found |= {f"M of {name}": M for name, M in operator.adjoint(given["a"], [first]).items()}
    right, left = operator.adjoint_products(given["a"])[first]
    found |= {"right": right(given["V"]), "left": left(given["U"])}
    for name, extent in operator.extents.items():
        found |= {
            f"extent {name}": torch.tensor([extent.rows, extent.longest]),
            f"sizes {name}": extent.sizes,
        }
    for name, rows in operator.select(given["index"]).layers.items():
        found |= {f"{name}/x": rows.x, f"{name}/g": rows.g, f"{name}/counts": rows.counts}
    return found


def every_product(seeds: list[int]) -> list[dict[str, Tensor]]:
    found = []
    for seed in seeds:
        whole = random_jacobian(seed)
        found.append(products(share(whole), arguments(whole)))
    return found


def shared_problem() -> Problem:
    """Return a problem of which this process holds its share."""
    whole = random_problem(4, n_examples=23, shapes=((9, 8), (7, 10)))
    return replace(whole, jacobian=share(whole.rows))


def solved() -> dict[str, dict[str, Any]]:
    """Return the certificate of every solver's answer."""
    return {name: asdict(certify(p := shared_problem(), solver.solve(p))) for name, solver in SOLVERS.items()}


def badly_shared(kind: str) -> None:
    """Share out examples so that one is in no process or in two, or has a number that none has."""
    whole = random_jacobian(0)
    index = torch.arange(whole.n_examples)[processes.rank() :: processes.count()]
    if processes.rank() == 0:
        index = {"none": index[1:], "two": torch.arange(whole.n_examples), "beyond": index + 100}[kind]
    local = whole.select(index % whole.n_examples)
    ShardedJacobian(local, index, whole.n_examples)


def drifting() -> list[str]:
    """Return what every product says where the last bit of its argument differs in process 1."""
    operator = share(random_jacobian(0))
    given = arguments(random_jacobian(0))
    point, (right, left) = (
        operator.at(given["factors"]),
        next(iter(operator.adjoint_products(given["a"]).values())),
    )
    nudge = 1 + (processes.rank() == 1) * torch.finfo(torch.float64).eps
    nudged = {
        name: value * nudge if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in given.items()
    }
    for name in ("delta", "factors", "d"):
        nudged[name] = {
            layer: block * nudge if isinstance(block, Tensor) else (block[0], block[1] * nudge)
            for layer, block in given[name].items()
        }
    there = operator.at(nudged["factors"])
    calls = [
        lambda: operator.forward(nudged["delta"]),
        lambda: operator.adjoint(nudged["a"]),
        lambda: right(nudged["V"]),
        lambda: left(nudged["U"]),
        lambda: next(iter(operator.adjoint_products(nudged["a"]).values()))[0](given["V"]),
        lambda: there.forward(),
        lambda: there.adjoint(given["a"]),
        lambda: point.adjoint(nudged["a"]),
        lambda: point.differential(nudged["d"]),
        lambda: point.curvature(nudged["d"], lambda z, _: z),
        lambda: operator.select(torch.arange(1 + processes.rank() % 2)),
    ]
    said = []
    for call in calls:
        try:
            call()
            said.append("")
        except processes.GroupError as error:
            said.append(str(error))
    return said


def killed_in_descent() -> str:
    """Kill process 1 in the middle of a run; return what the others say."""
    if processes.rank() == 1:
        calls = iter(range(200))

        def monitor(record: Record, factors: Factors) -> dict[str, float]:
            if next(calls) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return {}
    else:
        monitor = None  # type: ignore[assignment]
    try:
        Descent(rank=2, epochs=100_000, tolerance=1e-300).solve(shared_problem(), monitor)
    except processes.GroupError as error:
        return str(error)
    return "solved"
