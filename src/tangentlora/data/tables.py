"""Reading csv, tsv, json, jsonl and parquet files as tables of rows that remember their place in the file."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tangentlora.errors import InputError

TABLE_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Table:
    """Rows of equal width under column names; `numbers` are their places, counted from 1 as a user would.

    `header` says that the names were read from the file's first row, which is then row 1. `class_names` has
    what the numbers in a column mean, counted from 0, where the file tells.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    numbers: tuple[int, ...]
    header: bool
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def without_header(self, columns: tuple[str, ...]) -> Table:
        """Return the table with the row that was taken for a header as data, under these names."""
        return Table(self.name, columns, (self.columns, *self.rows), (1, *self.numbers), header=False)

    def column(self, name: str) -> list[Any]:
        """Return the values under `name`; the first such column counts."""
        place = self.columns.index(name)
        return [row[place] for row in self.rows]


def read_table(path: Path) -> Table:
    """Return the table in a file, whose kind the suffix tells; text files are UTF-8, with or without a mark.

    Quotes group fields in csv files only: sentences in tsv files hold lone quotes. A json file holds a list
    of objects, a jsonl file one object a line; what an object lacks is None. Raises InputError for
    another suffix, a file that cannot be decoded, a row of the wrong width (with its number) and an empty
    file.
    """
    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        raise InputError(
            f"cannot read {path} as a table: expected a file that ends in one of {', '.join(TABLE_SUFFIXES)}"
        )
    try:
        table = _delimited(path, suffix) if suffix in (".csv", ".tsv") else _records(path, suffix)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text (byte {error.start}: {error.reason}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error}; give a readable {suffix} file") from error
    if not table.rows and not table.columns:
        raise InputError(f"{path} is empty; expected rows with a text and a label")
    return table


def _delimited(path: Path, suffix: str) -> Table:
    numbered: list[tuple[int, list[str]]] = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        if suffix == ".csv":
            reader = csv.reader(file, strict=True)
        else:
            reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
        try:
            for number, fields in enumerate(reader, start=1):
                if fields:
                    numbered.append((number, fields))
        except csv.Error as error:
            raise InputError(
                f"{path} is not well-formed {suffix[1:]} at line {reader.line_num} ({error}); correct it"
            ) from error
    if not numbered:
        return Table(str(path), (), (), (), header=True)
    width = len(numbered[0][1])
    for number, fields in numbered:
        if len(fields) != width:
            raise InputError(
                f"row {number} of {path} has {len(fields)} fields where the first row has {width}; "
                f"correct that row" + _row_hint(numbered[0][1], suffix)
            )
    (_, header), *body = numbered
    rows = tuple(tuple(fields) for _, fields in body)
    return Table(str(path), tuple(header), rows, tuple(number for number, _ in body), header=True)


def _row_hint(first: list[str], suffix: str) -> str:
    """Return what else may be wrong with a row of another width."""
    if len(first) == 1 and any(sign in first[0] for sign in ";\t|,"):
        return (
            ", or save the file with " + ("commas" if suffix == ".csv" else "tabs") + " between the columns"
        )
    return " or quote the commas in it" if suffix == ".csv" else ""


def _records(path: Path, suffix: str) -> Table:
    numbers: Sequence[int]
    if suffix == ".jsonl":
        with path.open(encoding="utf-8-sig") as file:
            lines = [(number, line) for number, line in enumerate(file, start=1) if line.strip()]
        numbers = [number for number, _ in lines]
        records: Any = [_parse(line, f"line {number} of {path}") for number, line in lines]
    else:
        records = _parquet(path) if suffix == ".parquet" else _parse(path.read_text("utf-8-sig"), str(path))
        if not isinstance(records, list):
            raise InputError(
                f"{path} holds a JSON {type(records).__name__}; expected a list of objects, or a .jsonl file"
            )
        numbers = range(1, len(records) + 1)
    for number, record in zip(numbers, records, strict=True):
        if not isinstance(record, dict):
            raise InputError(
                f"row {number} of {path} is a {type(record).__name__}; expected an object"
                f" with a text and a label"
            )
    columns = tuple(dict.fromkeys(name for record in records for name in record))
    rows = tuple(tuple(record.get(column) for column in columns) for record in records)
    named = _class_names(path) if suffix == ".parquet" else {}
    return Table(str(path), columns, rows, tuple(numbers), header=False, class_names=named)


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _object(pairs, place))
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, lists without end
        lines = place.endswith(".json") and "Extra data" in str(error)
        raise InputError(
            f"{place} is not valid JSON ({error}); expected objects with a text and a label"
            + (": where each line holds one, name the file .jsonl" if lines else "")
        ) from error


def _object(pairs: list[tuple[str, Any]], place: str) -> dict[str, Any]:
    """Return an object; raise InputError where it has a name twice, of which one value would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        name = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
        raise InputError(f"{place} has an object with {name!r} twice; expected each name once: remove one")
    return found


def _class_names(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the names of the classes that `datasets` notes in the schema of a parquet file, by column."""
    import pyarrow.parquet  # type: ignore[import-untyped]

    noted = (pyarrow.parquet.read_schema(path).metadata or {}).get(b"huggingface")
    try:
        features = json.loads(noted)["info"]["features"] if noted else {}
        return {
            column: tuple(map(str, kind["names"]))
            for column, kind in features.items()
            if isinstance(kind, dict) and kind.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}  # another program's note: the numbers stand


def _parquet(path: Path) -> Any:
    import pyarrow.lib  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            table = file.read()
    except pyarrow.lib.ArrowException as error:
        raise InputError(f"{path} is not a parquet file ({error}); write it anew, or as csv") from error
    for name in table.column_names:
        if (times := table.column_names.count(name)) > 1:
            raise InputError(f"{path} has {times} columns called {name!r}; expected one: rename the others")
    try:
        return table.to_pylist()
    except (OverflowError, ValueError, pyarrow.lib.ArrowException) as error:
        raise InputError(
            f"{path} has values that cannot be read ({error}); expected texts, numbers and dates of this "
            "era: leave that column out, or write it as text"
        ) from error
