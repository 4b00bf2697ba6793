"""What processes exchange, and that they end with an error where one is gone or they have drifted apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from process_groups import PATIENCE, environment, run_together
from process_steps import drift, exchange, killed, own
from tangentlora import processes
from tangentlora.errors import InputError
from tangentlora.processes.group import _own_device

COUNT = 3


def test_every_process_gets_the_same_sums_and_rows(tmp_path: Path) -> None:
    found = run_together(COUNT, tmp_path, exchange)
    for result in found:
        for key, value in result.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(value, found[0][key], rtol=0, atol=0, equal_nan=True)
    first = found[0]
    short = [sum(own(rank, 3, 2) for rank in range(COUNT)), sum(own(rank + 9, 4) for rank in range(COUNT))]
    torch.testing.assert_close(first["short"], short)
    torch.testing.assert_close(first["long"], sum(own(rank, 700, 5) for rank in range(COUNT)))
    # added in float64, then rounded once
    exact = sum(own(rank, 2000).float().double() for rank in range(COUNT)).float()
    assert torch.equal(first["exact"], exact)
    assert first["whole"].tolist() == [3 * 2**50 - 3, 3]
    assert first["none"].shape == (0, 3)
    assert torch.equal(first["rows"], own(0, 7, 3))
    assert str(first["special"].tolist()) == "[nan, inf, -inf, 1e+300, 5e-324]"
    assert first["values"] == [{"rank": rank} for rank in range(COUNT)]
    assert first["told"] == [0, 6, 12, 18, 21]
    assert {result["done"] for result in found} == {22}


def test_a_drift_is_told_by_all_and_no_exchange_is_left_half_done(tmp_path: Path) -> None:
    found = run_together(COUNT, tmp_path, drift)
    for said in found:
        assert said.pop("none") == said.pop("after") == ""
        for message in said.values():
            assert "got other numbers in process 1 than in process 0 at the step" in message
            assert "expected the same bytes" in message


@pytest.mark.parametrize("how", ["sum", "tally"])
def test_a_process_that_is_killed_ends_the_wait_of_the_others(tmp_path: Path, how: str) -> None:
    found = run_together(COUNT, tmp_path, killed, how)
    assert found[1] is None
    for said, seconds in (found[0], found[2]):
        assert said.startswith("got no answer from another process (")
        assert "start the run again" in said
        assert seconds < PATIENCE / 2


def test_one_process_exchanges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in environment(0, 1, 1):
        monkeypatch.delenv(name, raising=False)
    processes.join()
    assert (processes.launched(), processes.rank(), processes.count(), processes.first()) == (
        (0, 1),
        0,
        1,
        True,
    )
    x = torch.randn(3)
    assert processes.sum_over([x], "step")[0] is x
    assert torch.equal(processes.gather_rows(x, torch.tensor([2, 0, 1]), 3, "step"), x[[1, 2, 0]])
    assert processes.gather_values(5, "step") == [5]
    processes.barrier("step")
    tally = processes.Tally()
    assert [tally.add(4), tally.add(5), tally.finish(3)] == [4, 9, 9]
    said: list[int] = []
    processes.end(lambda: said.append(1))
    assert said == [1]
    processes.leave()


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
        ({"PMI_RANK": "3", "PMI_SIZE": "4"}, (3, 4)),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, (0, 2)),
        ({"WORLD_SIZE": "2"}, (0, 1)),
        ({"RANK": "", "WORLD_SIZE": "two"}, (0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": None}, (0, 1)),
    ],
)
def test_the_launcher_says_who_takes_part(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, str | None], expected: tuple[int, int]
) -> None:
    for name, value in ({"RANK": None, "WORLD_SIZE": None, "MASTER_ADDR": "127.0.0.1"} | told).items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert processes.launched() == expected


def test_a_number_that_makes_no_sense_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(2, 2, 1).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"got process 2 of 2 from the environment, expected .* torchrun"):
        processes.launched()


@pytest.mark.parametrize(
    ("device", "devices", "local"), [("cuda:1", 4, "0"), ("cuda", 2, "2"), ("cuda", 0, "0")]
)
def test_a_cuda_device_for_every_process_or_none(
    monkeypatch: pytest.MonkeyPatch, device: str, devices: int, local: str
) -> None:
    monkeypatch.setenv("LOCAL_RANK", local)
    with pytest.raises(InputError, match=r"expected --device cuda and a device for every process"):
        _own_device(device, devices)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert _own_device("cuda", 2) == 1


def test_checksums_tell_apart_order_shape_and_last_bits() -> None:
    a, b = torch.arange(6.0), torch.arange(6.0).reshape(2, 3)
    last = a.clone()
    last[-1] = torch.nextafter(last[-1], torch.tensor(9.0))
    parts = [[a], [b], [b.T], [last], [a.double()], [a, b], [b, a], ["a"], ["b"], [a.flip(0)]]
    assert len({processes.checksum(part) for part in parts}) == len(parts)
    assert processes.checksum([b.T]) == processes.checksum([b.T.contiguous()])
