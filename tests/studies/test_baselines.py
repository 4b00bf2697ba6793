"""The baselines: each against its own computation, choosing by the dev set and by nothing else."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch.nn import functional

from tangentlora.adapters.train import train_lora
from tangentlora.data import Examples, Splits, Task
from tangentlora.errors import InputError
from tangentlora.models import Prototypes, network_from_module
from tangentlora.models.embeddings import embeddings
from tangentlora.models.load import fingerprint
from tangentlora.models.network import Network
from tangentlora.studies.baselines import (
    INVERSE_REGULARISATIONS,
    better,
    logistic_regression,
    peft_lora,
    zero_shot,
)
from tangentlora.studies.prepare import scores
from tiny_networks import WORDS, tiny_module, tiny_processor

SENTENCES = ("it was terrible", "it was okay", "it was great")
RATES = (1e-3, 1e-2)


def network_of(K):
    processor = tiny_processor("bert")
    module = tiny_module("bert", len(processor)).bert
    return network_from_module(module, processor, Prototypes(SENTENCES[-K:]), name="tiny")


def examples(n, K, seed):
    """Random words and then one that tells the label, save one time in four."""
    draw = torch.Generator().manual_seed(seed)
    words, told = torch.randint(len(WORDS), (n, 3), generator=draw), torch.randint(K, (n,), generator=draw)
    wrong = (torch.rand(n, generator=draw) < 0.25).int() * torch.randint(K, (n,), generator=draw)
    telling = [sentence.split()[-1] for sentence in SENTENCES[-K:]]
    texts = (
        " ".join([*(WORDS[j] for j in row), telling[k]])
        for row, k in zip(words.tolist(), told.tolist(), strict=True)
    )
    return Examples(tuple(texts), tuple(((told + wrong) % K).tolist()), tuple(map(str, range(K))))


def splits_of(K, **changes):
    task = Task("toy", tuple(map(str, range(K))), tuple("abc"[:K]), "{text} {mask}", SENTENCES[-K:])
    sets = {"train": examples(12, K, 1), "dev": examples(15, K, 2), "test": examples(20, K, 3)}
    return Splits(**sets | changes, task=task, source="toy.csv")


def small_lora(network, splits, **changes):
    return peft_lora(
        network, splits, **{"learning_rates": RATES, "epochs": 4, "rank": 2, "alpha": 4} | changes
    )


METHODS = pytest.mark.parametrize("method", [zero_shot, logistic_regression, small_lora])


def dev(accuracy, loss):
    return {"dev_accuracy": accuracy, "dev_loss": loss, "train_accuracy": 1.0, "test_accuracy": 0.5}


def test_the_higher_accuracy_wins_then_the_lower_loss_and_ties_stay():
    ranking = [dev(0.9, 3.0), dev(0.8, 0.1), dev(0.8, 0.2), dev(0.0, 9.0), dev(1.0, float("nan"))]
    for i, one in enumerate(ranking):
        for j, other in enumerate(ranking):
            assert better(one, other) == (i < j)
    assert not better(dev(1.0, float("inf")), dev(0.9, float("nan")))
    assert not better(dev(0.8, 0.1) | {"test_accuracy": 1.0}, dev(0.8, 0.1))


@METHODS
def test_what_every_baseline_reports(method):
    network, splits = network_of(2), splits_of(2)
    random = torch.get_rng_state()
    found = method(network, splits)
    assert set(found.scores) == {
        f"{which}_{measure}" for which in ("train", "dev", "test") for measure in ("accuracy", "loss")
    }
    assert found.seconds > 0
    assert torch.equal(torch.get_rng_state(), random)
    assert fingerprint(network.module) == network.fingerprint
    again = method(network, splits)
    assert replace(again, seconds=0.0) == replace(found, seconds=0.0)


@METHODS
def test_the_test_set_changes_no_choice_and_may_be_absent(method):
    network, splits = network_of(2), splits_of(2)
    found = method(network, splits)
    flipped = replace(splits.test, labels=tuple(1 - label for label in splits.test.labels))
    for test in (None, flipped):
        other = method(network, replace(splits, test=test))
        assert other.chosen == found.chosen
        kept = {name: value for name, value in found.scores.items() if not name.startswith("test")}
        assert {name: value for name, value in other.scores.items() if not name.startswith("test")} == kept
    assert other.scores["test_accuracy"] == pytest.approx(1 - found.scores["test_accuracy"])


def test_zero_shot_is_the_network_as_it_is():
    network, splits = network_of(3), splits_of(3)
    found = zero_shot(network, splits)
    z, y = network.predict(splits.test.inputs), torch.tensor(splits.test.labels)
    assert found.scores["test_accuracy"] == pytest.approx(float((z.argmax(1) == y).float().mean()))
    assert found.scores["test_loss"] == pytest.approx(float(functional.cross_entropy(z, y)), rel=1e-5)
    assert (found.variant, found.chosen, found.trained_parameters) == ("zero-shot", {}, 0)
    assert set(zero_shot(network, replace(splits, dev=None)).scores) == {
        "train_accuracy",
        "train_loss",
        "test_accuracy",
        "test_loss",
    }


def fitted(x, y, K, C):
    """Minimise C Σ CE + ½‖w‖² from scratch; two labels have one output, as in scikit-learn."""
    rows = 1 if K == 2 else K
    w = torch.zeros(rows, x.shape[1], dtype=torch.float64, requires_grad=True)
    b = torch.zeros(rows, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [w, b], max_iter=5000, tolerance_grad=1e-9, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def outputs(x):
        z = x @ w.T + b
        return z if K > 2 else torch.cat([torch.zeros_like(z), z], dim=1)

    def closure():
        optimiser.zero_grad()
        value = C * functional.cross_entropy(outputs(x), y, reduction="sum") + (w**2).sum() / 2
        value.backward()
        return value

    optimiser.step(closure)
    return lambda x: outputs(x).detach()


@pytest.mark.parametrize("K", [2, 3])
def test_logistic_regression_from_scratch(K):
    network, splits = network_of(K), splits_of(K)
    found = logistic_regression(network, splits)
    phi = {part: embeddings(network, part.inputs) for part in (splits.train, splits.dev, splits.test)}
    centred = phi[splits.train] - phi[splits.train].mean(0)
    scale = torch.linalg.norm(centred) / len(centred) ** 0.5
    x = {part: (rows - phi[splits.train].mean(0)) / scale for part, rows in phi.items()}
    assert (min(INVERSE_REGULARISATIONS), max(INVERSE_REGULARISATIONS)) == (1e-3, 1e3)
    reached = {}
    for C in INVERSE_REGULARISATIONS:
        outputs = fitted(x[splits.train], torch.tensor(splits.train.labels), K, C)
        reached[C] = {
            name: value
            for which, part in (("dev", splits.dev), ("test", splits.test))
            for name, value in scores(outputs(x[part]), part.labels, which).items()
        }
    expected = max(reached, key=lambda C: (reached[C]["dev_accuracy"], -reached[C]["dev_loss"]))
    assert found.chosen == {"C": expected}
    assert found.trained_parameters == (1 if K == 2 else K) * 33
    for name, value in reached[expected].items():
        assert found.scores[name] == pytest.approx(value, rel=1e-5)


def test_a_label_without_training_examples_has_no_probability():
    network, splits = network_of(3), splits_of(3)
    present = [i for i, label in enumerate(splits.train.labels) if label != 1]
    found = logistic_regression(network, replace(splits, train=splits.train.select(present)))
    share = splits.test.labels.count(1) / len(splits.test)
    assert found.scores["test_loss"] > 700 * share - 1
    assert found.scores["test_loss"] < 702
    assert 0 < found.scores["test_accuracy"] <= 1 - share


def test_equal_embeddings_are_no_obstacle():
    network, splits = network_of(2), splits_of(2)
    same = replace(splits.train, inputs=("it was great",) * len(splits.train))
    found = logistic_regression(network, replace(splits, train=same))
    assert found.scores["train_loss"] == found.scores["train_loss"]


@cache
def lora_points():
    """Return the dev and test scores of every learning rate and epoch, and the chosen baseline."""
    network, splits = network_of(3), splits_of(3)
    targets = network.targets(("query", "value"), "all")
    points = {}
    for rate in RATES:

        def keep(epoch, factors, rate=rate):
            points[rate, epoch] = {
                name: value
                for which, part in (("dev", splits.dev), ("test", splits.test))
                for name, value in scores(network.predict(part.inputs), part.labels, which).items()
            }

        settings = {"rank": 2, "alpha": 4, "epochs": 4, "batch_size": 8, "weight_decay": 0.01, "seed": 0}
        train_lora(
            network,
            targets,
            splits.train.inputs,
            splits.train.labels,
            learning_rate=rate,
            on_epoch=keep,
            **settings,
        )
    return points, small_lora(network, splits)


def test_lora_is_chosen_among_all_rates_and_epochs():
    points, found = lora_points()
    best = max(points, key=lambda point: (points[point]["dev_accuracy"], -points[point]["dev_loss"]))
    assert len(points) == 8
    assert found.chosen == {"learning_rate": best[0], "epoch": best[1]}
    assert found.trained_parameters == 2 * 4 * (32 + 32)
    for name, value in points[best].items():
        assert found.scores[name] == pytest.approx(value, rel=1e-4)


def test_the_order_of_learning_rates_does_not_matter():
    network, splits = network_of(3), splits_of(3)
    other = small_lora(network, splits, learning_rates=RATES[::-1])
    assert replace(other, seconds=0.0) == replace(lora_points()[1], seconds=0.0)


def test_where_nothing_is_learnt_the_first_epoch_at_the_lowest_rate_is_chosen():
    found = small_lora(network_of(2), splits_of(2), learning_rates=(1e-29, 1e-30))
    assert found.chosen == {"learning_rate": 1e-30, "epoch": 1}


def test_the_test_set_is_seen_once(monkeypatch):
    network, splits = network_of(2), splits_of(2)
    seen, predict = [], Network.predict

    def recorded(self, inputs, batch_size=32):
        seen.append(inputs)
        return predict(self, inputs, batch_size)

    monkeypatch.setattr(Network, "predict", recorded)
    small_lora(network, splits)
    assert seen.count(splits.test.inputs) == 1
    assert seen[-1] == splits.test.inputs
    assert seen.count(splits.dev.inputs) == 2 * 4 + 1


def test_a_run_that_diverged_is_not_chosen():
    network, splits = network_of(2), splits_of(2)
    found = small_lora(network, splits, learning_rates=(1e-3, 1e30))
    assert found.chosen["learning_rate"] == 1e-3
    assert found.scores["test_loss"] < 100


@pytest.mark.parametrize("method", [logistic_regression, small_lora])
def test_without_a_dev_set_nothing_is_chosen(method):
    with pytest.raises(InputError, match=r"got toy\.csv without a dev set, expected one .*; give a dev set"):
        method(network_of(2), splits_of(2, dev=None))


def test_no_learning_rate_is_refused():
    with pytest.raises(InputError, match="got no learning rate, expected at least one"):
        small_lora(network_of(2), splits_of(2), learning_rates=())


def test_the_remedy_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match=r"got no scikit-learn.*pip install 'tangentlora\[studies\]'"):
        logistic_regression(network_of(2), splits_of(2))
