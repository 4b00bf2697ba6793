"""Prompts and the texts that continue them: examples without classes, for causal language models."""

from __future__ import annotations

from tangentlora.data.classification import COMPLETION
from tangentlora.data.columns import Columns
from tangentlora.data.examples import Examples
from tangentlora.data.labelling import text_values
from tangentlora.data.tables import Table
from tangentlora.errors import InputError


def completion_table(table: Table, columns: Columns) -> Examples:
    """Return the rows as pairs (prompt, completion), each text as it stands, outer blanks included.

    The completion follows the prompt directly: it begins with a space where a space is meant. Raises
    InputError, with the row number, for what is no text and for a blank completion.
    """
    (prompt,) = columns.text
    prompts, completions = text_values(table, prompt), text_values(table, columns.label)
    for number, completion in zip(table.numbers, completions, strict=True):
        if not completion.strip():
            raise InputError(
                f"row {number} of {table.name} has a blank completion in {columns.label!r}; add it or remove "
                f"the row"
            )
    pairs = tuple(zip(prompts, completions, strict=True))
    return Examples(pairs, (0,) * len(pairs), COMPLETION.labels)
