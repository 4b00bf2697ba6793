"""The benchmarks' page says no where a target is missed, and results claim no more than they measured."""

from __future__ import annotations

import json
import math
import platform
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tangentlora.models.network import Batch
from tangentlora.tangent.jacobian import Jacobian
from tangentlora.tangent.layer_rows import LayerRows

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
RESULTS = sorted((BENCHMARKS / "results").glob("*.json"))
SCRIPTS = sorted(
    path.stem for path in BENCHMARKS.glob("*.py") if '__name__ == "__main__"' in path.read_text()
)
PARTS = ("query", "value")
NO_CLAIMS = {"profile_jobs"}  # where time goes, on a page of its own


@pytest.fixture(autouse=True)
def _scripts_find_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    # at the end: one of them may have the name of a library's module
    monkeypatch.setattr(sys, "path", [*sys.path, str(BENCHMARKS)])


def script(name: str) -> ModuleType:
    return __import__(name)


def claim(median: float, target: float | None, direction: str, **more: Any) -> dict[str, Any]:
    ratio = {"min": 0.9 * median, "median": median, "max": 1.1 * median}
    return {
        "work": "this",
        "peer": "that",
        "ratio": ratio,
        "target": target,
        "direction": direction,
        **more,
    }


@pytest.mark.parametrize(
    ("made_up", "said"),
    [
        (claim(1.2, 1.1, "at most"), "**no**"),
        (claim(1.05, 1.1, "at most"), "yes"),
        (claim(1.1, 1.1, "at most"), "yes"),
        (claim(19.0, 20.0, "at least"), "**no**"),
        (claim(21.0, 20.0, "at least"), "yes"),
        (claim(math.nan, 20.0, "at least"), "**no**"),
        (claim(math.nan, 20.0, "at most"), "**no**"),
        (claim(21.0, 20.0, "at least", bound=True), "yes"),
        (claim(19.0, 20.0, "at least", bound=True), "not shown"),
        (claim(1.0, 1.1, "at most", bound=True), "not shown"),
        (claim(1.2, 1.1, "at most", bound=True), "**no**"),
        (claim(3.0, None, "at most"), ""),
    ],
)
def test_the_median_is_held_against_the_target(made_up: dict[str, Any], said: str) -> None:
    assert script("pages").verdict(made_up) == said


def test_the_page_is_made_from_the_results_alone(tmp_path: Path) -> None:
    pages = script("pages")
    machine = {"processor": "an abacus", "cores": 10, "threads": 1}
    content = {"machine": machine, "repeats": 3, "claims": [claim(1500.0, 2000, "at least", bound=True)]}
    (tmp_path / "lambda_path_made_up.json").write_text(json.dumps(content))
    (tmp_path / "profile_jobs.json").write_text('{"what": "no claims"}')
    text = pages.page(pages.read(tmp_path, BENCHMARKS))
    assert "| this | that | ≥ 1,350 / 1,500 / 1,650 | ≥ 2,000 | not shown |" in text.replace("\xa0", " ")
    assert "an abacus, 10 cores." in text
    assert "### `benchmarks/lambda_path.py`" in text
    assert "One thread, 3 runs" in text
    assert (script("lambda_path").__doc__ or "?").splitlines()[0] in text


def test_a_result_of_no_script_is_refused(tmp_path: Path) -> None:
    (tmp_path / "stranger.json").write_text('{"claims": []}')
    with pytest.raises(SystemExit, match=r"got stranger\.json"):
        script("pages").read(tmp_path, BENCHMARKS)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_claim_what_they_measured(path: Path) -> None:
    content = json.loads(path.read_text())
    if path.stem in NO_CLAIMS:
        return
    assert content["claims"], "a result without a claim"
    for made in content["claims"]:
        least, median, largest = (made["ratio"][key] for key in ("min", "median", "max"))
        assert 0 < least <= median <= largest < math.inf
        assert made["direction"] in ("at least", "at most")
    module = script(script("pages").script_of(path.stem, BENCHMARKS).stem)
    if hasattr(module, "claims"):
        assert module.claims(content) == content["claims"]


def test_claims_follow_the_figures() -> None:
    peers = script("linearize_peers")
    seconds = {peers.PLAIN: [1.0, 2.0], "ours": [1.0, 1.0], peers.PUBLISHED: [40.0, 44.0]}
    seconds |= {"slow": [9.0, 9.0], "quick": [3.0, 5.0], "trick": [1.0, 1.0]}
    found = {"processor_seconds": seconds, "scaled": {peers.PUBLISHED: 12}, "beside": ["trick"]}
    rows = peers.claims({"cases": {"all": found}})
    plain, published, best, other, _ = (made["ratio"] for made in rows)
    assert plain == {"min": 0.5, "median": 0.75, "max": 1.0}
    assert published == {"min": 40.0, "median": 42.0, "max": 44.0}
    assert best == {"min": 3.0, "median": 4.0, "max": 5.0}
    assert other == {"min": 9.0, "median": 9.0, "max": 9.0}
    assert "scaled" in rows[1]["peer"]
    assert rows[2]["peer"].startswith("quick, the faster of")


def test_the_committed_page_is_that_of_the_committed_results() -> None:
    pages = script("pages")
    assert (ROOT / "docs" / "benchmarks.md").read_text() == pages.page(
        pages.read(BENCHMARKS / "results", BENCHMARKS)
    )


def test_a_machine_is_described_and_not_named() -> None:
    found = script("outcome").machine(2)
    assert (found["threads"], found["torch"]) == (2, torch.__version__)
    assert found["memory_gb"] > 0
    assert platform.node() not in map(str, found.values())


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_explains_itself(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = BENCHMARKS / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    assert ended.value.code == 0
    assert "--output" in printed or "problem" in printed  # a peer's own process has a problem to solve


def test_make_runs_every_benchmark() -> None:
    made = set((ROOT / "Makefile").read_text().split())
    measuring = {name for name in SCRIPTS if "report(" in (BENCHMARKS / f"{name}.py").read_text()}
    assert measuring <= made, "make bench leaves some out"


@pytest.mark.parametrize(
    ("peer", "library"),
    [
        ("published", "torch"),
        ("by_example", "torch"),
        ("opacus", "opacus"),
        ("curvlinops", "curvlinops"),
        ("curvlinops_batch", "curvlinops"),
    ],
)
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
def test_peers_give_the_jacobian_that_autograd_gives(peer: str, library: str) -> None:
    pytest.importorskip(library)
    model, batch = small_model(words=(1, 4) if peer == "published" else None)
    names = [
        f"encoder.encoder.layer.{layer}.attention.self.{part}.weight" for layer in (0, 1) for part in PARTS
    ]
    weights = [model.get_parameter(name).requires_grad_(True) for name in names]
    rows = [torch.autograd.grad(z, weights, retain_graph=True) for outputs in model(batch) for z in outputs]
    for weight in weights:
        weight.requires_grad_(False)
    ways: list[dict[str, Any]] = [{}, {"again": True}] if peer == "opacus" else [{}]
    for options in ways:
        found = getattr(script("jacobian_peers"), peer)(model, batch, names, **options)
        for t, name in enumerate(names):
            expected = torch.stack([row[t] for row in rows]).unflatten(0, (3, -1))
            blocks = torch.stack(tuple(found[name]), dim=int(peer == "opacus"))
            torch.testing.assert_close(blocks, expected, rtol=1e-4, atol=1e-6)
        assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("along", [0, 1])
def test_a_peer_that_is_wrong_in_one_block_is_found(along: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, g = torch.randn(6, 4, generator=generator), torch.randn(6, 2, 5, generator=generator)
    ours = Jacobian({"layer": LayerRows(x, g, torch.tensor([1, 2, 3]))})
    dense = ours.dense()["layer"].clone()
    error = script("linearize_peers").worst_error
    batches = [Batch((2, 0), {}), Batch((1,), {})]

    def of_all() -> float:
        found = [(b, {"theirs": dense[list(b.index)].unbind(along)}) for b in batches]
        return float(error(ours, found, along, {"theirs": "layer"}))

    assert of_all() < 1e-6
    expected = dense[2, 1].norm() / dense.norm()
    dense[2, 1] *= 2
    assert of_all() == pytest.approx(float(expected), rel=1e-5)


def test_the_target_of_a_peer_is_held_at_the_largest_size_at_which_it_ran() -> None:
    peers, convex = script("certified_peers"), script("convex_peers")
    late = convex.Outcome(600.0, ended="did not finish in 600 s of one processor")
    failed = convex.Outcome(20.0, ended="failed within 16 GB of memory")
    assert late.ran
    assert not failed.ran

    def solves(*outcomes: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            {"share": share, "ours": [0.5], "peers": of_share}
            for share, of_share in zip(peers.SHARES, outcomes, strict=False)
        ]

    done = convex.Outcome(60.0, objective=0.1)
    rows = peers.claims_of(
        {
            32: solves(dict.fromkeys(("fista", "scs", "clarabel"), done), {"fista": done, "scs": done}),
            64: solves({"scs": done, "clarabel": late}),
            768: solves({"fista": late, "scs": late, "clarabel": failed}, {"fista": late}),
        }
    )
    held = {
        (row["work"].split("of ")[1].split(",")[0], row["peer"].split()[0], row["target"]) for row in rows
    }
    asked = {each for each in held if each[2] is not None}
    assert asked == {("768×768", "FISTA", 100), ("768×768", "SCS", 1000), ("64×64", "Clarabel", 1000)}
    assert [row["ratio"]["median"] for row in rows if row["target"] is not None] == [1200.0] * 4
    assert all(row["bound"] for row in rows if row["target"] is not None)


def small_model(words: tuple[int, ...] | None) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a RoBERTa of two layers with the logits of six words or some of them, and a batch of three."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    torch.manual_seed(0)
    module = RobertaForMaskedLM(
        RobertaConfig(
            vocab_size=6, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
            max_position_embeddings=16, type_vocab_size=1, initializer_range=0.3,
        )
    )  # fmt: skip
    module = module.eval().requires_grad_(False)
    model = script("jacobian_peers").Outputs(module.roberta, module.lm_head, 4, words)
    ids = torch.tensor([[0, 3, 4, 5, 2], [0, 5, 5, 4, 2], [0, 4, 3, 2, 1]])
    return model.eval(), {"input_ids": ids, "attention_mask": (ids != 1).long()}
