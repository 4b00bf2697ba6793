"""Other ways to the optimum of P(δ) = L̂(δ) + λ Σ_t ‖δ_t‖_*, K = 2, each run in a process of its own.

FISTA takes full singular value decompositions of the iterates, in float64, with the gradient from our
operator, which is faster than from the dense Jacobian; its step is found by backtracking, which takes fewer
decompositions than the exact Lipschitz constant, and its momentum restarts where it turns against the step.
SCS and Clarabel get the problem through cvxpy: the logistic loss of the difference of the two outputs, which
is all that softmax sees, the Jacobian as one matrix per layer, and `normNuc`. They are asked for the accuracy
that the certificate asks for, 1e-6, and not more.

    python benchmarks/convex_peers.py fista problem.safetensors --lam 0.01
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from planted import read

from tangentlora import Problem
from tangentlora.blocks import Blocks

TOLERANCE = 1e-6
PEERS = {"fista": "FISTA with full SVDs", "scs": "SCS through cvxpy", "clarabel": "Clarabel through cvxpy"}
_FAILED = "failed"
_CHECKED_EVERY = 10  # iterations of FISTA between two duality gaps


@dataclass(frozen=True)
class Outcome:
    """Processor seconds until the answer, P there and its gap; without an answer, why there is none."""

    seconds: float
    objective: float | None = None
    gap: float | None = None
    steps: int | None = None
    ended: str = "solved"

    @property
    def ran(self) -> bool:
        """Whether it ran until it was done or its time was up."""
        return not self.ended.startswith(_FAILED)


def primal(problem: Problem, delta: Blocks) -> tuple[float, float]:
    """Return P(δ) and its duality gap for dense δ."""
    z = problem.f0 + problem.jacobian.forward(delta)
    norm = sum(float(torch.linalg.matrix_norm(block, "nuc")) for block in delta.values())
    value = problem.empirical_loss(z) + problem.lam * norm
    return value, value - problem.dual_value(problem.dual_point(z))


def fista(problem: Problem) -> tuple[Blocks, int]:
    """Return δ with a relative gap of at most 1e-6, and the number of decompositions per layer.

    Source: Beck and Teboulle 2009; restart: O'Donoghue and Candès 2015.
    """
    lam, zeros = problem.lam, {}
    for name, shape in problem.jacobian.shapes.items():
        zeros[name] = torch.zeros(shape, dtype=torch.float64)
    bound = problem.loss.smoothness * float(problem.kernel_eigenvalues[-1]) / len(problem.f0)
    delta = ahead = zeros
    clock, smooth, steps, iteration = 1.0, bound / 16, 0, 0
    while True:
        z_ahead = problem.f0 + problem.jacobian.forward(ahead)
        a, value = problem.dual_point(z_ahead), problem.empirical_loss(z_ahead)
        gradient = problem.jacobian.adjoint(a)
        smooth *= 0.9
        while True:
            fresh, norm = {}, 0.0
            for name, Y in ahead.items():
                left, sigma, right = torch.linalg.svd(Y - gradient[name] / smooth, full_matrices=False)
                sigma = (sigma - lam / smooth).clamp(min=0)
                fresh[name], norm = (left * sigma) @ right, norm + float(sigma.sum())
            steps += 1
            z = problem.f0 + problem.jacobian.forward(fresh)
            loss = problem.empirical_loss(z)
            distance = sum(float((fresh[name] - ahead[name]).square().sum()) for name in fresh)
            linear = float((a * (z - z_ahead)).sum())
            if smooth >= bound or loss <= value + linear + 0.5 * smooth * distance + 1e-14:
                break
            smooth = min(1.5 * smooth, bound)
        if iteration % _CHECKED_EVERY == 0:
            objective = loss + lam * norm
            gap = objective - problem.dual_value(problem.dual_point(z))
            if gap <= TOLERANCE * max(1.0, objective):
                return fresh, steps
        turned = sum(float(((ahead[t] - fresh[t]) * (fresh[t] - delta[t])).sum()) for t in fresh) > 0
        later = 1.0 if turned else 0.5 * (1 + math.sqrt(1 + 4 * clock**2))
        beta = 0.0 if turned else (clock - 1) / later
        ahead = {name: fresh[name] + beta * (fresh[name] - delta[name]) for name in fresh}
        delta, clock, iteration = fresh, later, iteration + 1


def by_cvxpy(problem: Problem, peer: str) -> tuple[Blocks, int]:
    """Return δ as SCS or Clarabel find it, and their iterations."""
    import cvxpy as cp

    n = len(problem.f0)
    signs = 2 * problem.y.double().numpy() - 1
    difference = (problem.f0[:, 1] - problem.f0[:, 0]).numpy()
    deltas, penalty = {}, 0
    for name, blocks in problem.jacobian.dense().items():
        deltas[name] = cp.Variable(blocks.shape[2:])
        matrix = (blocks[:, 1] - blocks[:, 0]).mT.reshape(n, -1).numpy()  # vec by columns, as cvxpy's
        difference = difference + matrix @ cp.vec(deltas[name], order="F")
        penalty = penalty + cp.normNuc(deltas[name])
    losses = cp.sum(cp.logistic(cp.multiply(-signs, difference)))
    posed = cp.Problem(cp.Minimize(losses / n + problem.lam * penalty))
    # the backend that translates this problem fastest; cvxpy's own choice takes twice as long
    if peer == "scs":
        # its acceleration keeps ten iterates, for which there is no memory at the full size
        options: dict[str, Any] = {"solver": cp.SCS, "max_iters": 10**7, "acceleration_lookback": 0}
        options |= dict.fromkeys(("eps_abs", "eps_rel"), TOLERANCE)
    else:
        options = {"solver": cp.CLARABEL}
        options |= dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), TOLERANCE)
    posed.solve(canon_backend=cp.SCIPY_CANON_BACKEND, **options)
    found = {name: torch.from_numpy(variable.value) for name, variable in deltas.items()}
    return found, int(posed.solver_stats.num_iters)


def in_process(peer: str, path: Path, lam: float, threads: int, limit: float, memory: float) -> Outcome:
    """Run a peer in a process of its own, which ends after `limit` processor seconds of solving."""
    command = [sys.executable, __file__, peer, str(path), "--lam", repr(lam)]
    command += ["--threads", str(threads), "--memory", str(memory), "--limit", str(limit)]
    # SCS and Clarabel ask the environment, not torch
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as child:
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        text, _ = child.communicate()
    if child.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return Outcome(limit, ended=f"did not finish in {limit:g} s of one processor")
    if child.returncode:
        spent = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
        return Outcome(spent, ended=f"{_FAILED} within {memory:g} GB of memory")
    return Outcome(**json.loads(text.splitlines()[-1]))


def main() -> None:
    """Solve one problem by one peer and print the outcome as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("problem", type=Path)
    parser.add_argument("--lam", type=float, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", type=float, default=16.0, help="gigabytes of address space")
    parser.add_argument("--limit", type=float, default=600.0, help="processor seconds")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peer != "fista":
        import cvxpy  # noqa: F401 - its import is not part of what is timed
    problem = read(options.problem, options.lam)
    size = round(options.memory * 1e9)
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    began = time.process_time()
    ends = math.ceil(began + options.limit)
    resource.setrlimit(resource.RLIMIT_CPU, (ends, ends + 10))
    # FISTA needs what Certified reduces too: one contrast of the two outputs
    answer, steps = fista(problem.contrasted) if options.peer == "fista" else by_cvxpy(problem, options.peer)
    spent = time.process_time() - began
    objective, gap = primal(problem, answer)
    print(json.dumps(asdict(Outcome(spent, objective, gap, steps))))


if __name__ == "__main__":
    main()
