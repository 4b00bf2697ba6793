"""The verdict's headline, the runs side by side, and the rest of the verdict, for a terminal."""

from __future__ import annotations

import textwrap

from tangentlora.report.columns import WIDTH, named
from tangentlora.report.parsing import Number
from tangentlora.report.record import Answer, Run
from tangentlora.report.standing import mark
from tangentlora.report.verdict import verdict
from tangentlora.report.wording import accuracy, number, relative

_NAME_WIDTH = 22


def comparison_table(run: Run, above: str = "") -> str:
    """Return the headline, aligned columns, one line per answer, and what else `verdict` says; 100 wide.

    `above` is text to stand between the headline and the columns.

    The relative gap is that of the answer's own certificate, gap / max(1, P); the rank is the largest among
    the layers. Accuracies are held-out, or of the training set where nothing is held out. The last column
    says whether the answer holds on the real network.
    """
    held_out = run.has_test_set
    head: list[tuple[str, ...]] = [
        ("", "", "relative", "", "rank", "", "", "", ""),
        ("run", "objective", "gap", "certified", "reached", "epochs", "linearised", "real", "holds"),
    ]
    before = accuracy(run.before.test_accuracy if held_out else run.before.train_accuracy)
    rows: list[tuple[str, ...]] = [
        ("before training", number(run.before.train_loss), "", "", "", "", before, before, "")
    ]
    rows += [_row(answer, held_out) for answer in run.answers]
    widths = [max(len(row[i]) for row in [*head, *rows]) for i in range(len(head[0]))]
    lines = [named(row, widths) for row in head]
    over = f"{'held-out' if held_out else 'training'} accuracy"
    lines[0] += over.rjust(len(lines[1]) - len(lines[0]) - widths[-1] - 2)
    lines += ["-" * max(map(len, lines)), *(named(row, widths) for row in rows), ""]
    first, *others = (textwrap.fill(line, WIDTH) for line in verdict(run))
    return "\n".join([first, "", *([above, ""] if above else []), *lines, *others])


def _row(answer: Answer, held_out: bool) -> tuple[str, ...]:
    def score(test: Number, train: Number) -> str:
        return accuracy(test if held_out else train)

    rank = answer.layer_rank
    return (
        textwrap.shorten(answer.name, _NAME_WIDTH, placeholder="…"),
        number(answer.objective) if answer.objective is not None else "not finite",
        relative(answer.relative_gap),
        "yes" if answer.certified else "no",
        relative(None) if rank is None else str(rank),
        str(answer.epochs),
        score(answer.linearised.test_accuracy, answer.linearised.train_accuracy),
        score(answer.real.test_accuracy, answer.real.train_accuracy),
        mark(answer.standing),
    )
