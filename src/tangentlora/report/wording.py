"""How numbers, lists and layers are put into words, the same in the table, the figures and the page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from tangentlora.report.parsing import Number

ABSENT = "–"
"""Stands for a number that is not known."""

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: Number) -> str:
    """Return an objective or a loss with six digits after the point, or with an exponent beyond that."""
    if value is None:
        return ABSENT
    return f"{value:.6f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else _exponent(f"{value:.4e}")


def precise(value: Number) -> str:
    """Return ten digits after the point, enough to tell an objective from a bound just below it."""
    return ABSENT if value is None else f"{value:.10f}"


def number_below(value: Number) -> str:
    """Return a lower bound as `number` does, but rounded down, so that the words stay true."""
    if value is None:
        return ABSENT
    exact = Decimal(repr(value))
    digits = -6 if 1e-3 <= abs(value) < 1e5 else exact.adjusted() - 4
    return number(float(exact.quantize(Decimal(1).scaleb(digits), rounding=ROUND_FLOOR)))


def plain(value: Number) -> str:
    """Return a setting such as λ as a user would type it: 0.1."""
    return ABSENT if value is None else _exponent(f"{value:g}")


def tolerance(value: Number) -> str:
    """Return a tolerance with all its digits and an exponent: 1e-3."""
    return ABSENT if value is None else f"{Decimal(repr(value)).normalize():e}".replace("e+", "e")


def relative(value: Number) -> str:
    """Return a relative gap with two digits, rounded to nearest."""
    return ABSENT if value is None else _exponent(f"{value:.1e}")


def at_most(value: float) -> str:
    """Return an upper bound with two digits, rounded up, so that the words stay true."""
    return _round(value, ROUND_CEILING)


def at_least(value: float) -> str:
    """Return a lower bound with two digits, rounded down, so that the words stay true."""
    return _round(value, ROUND_FLOOR)


def accuracy(value: Number) -> str:
    return ABSENT if value is None else f"{value:.3f}"


def power(exponent: int) -> str:
    """Return 10 to the exponent with raised digits, as on a logarithmic axis."""
    return f"10{str(exponent).translate(_SUPERSCRIPTS)}"


def data_size(n_bytes: float) -> str:
    """Return a number of bytes in the decimal unit that suits it."""
    for unit in ("bytes", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} GB"


def listing(items: Sequence[object]) -> str:
    """Return `1, 2 and 4`."""
    words = [str(item) for item in items]
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Return names that keep only the dotted parts in which the layers differ: `query`, or `11.query`.

    Names with different numbers of parts are left whole.
    """
    parts = [name.split(".") for name in names]
    if len({len(row) for row in parts}) != 1:
        return {name: name for name in names}
    differ = [i for i, column in enumerate(zip(*parts, strict=True)) if len(set(column)) > 1]
    return {
        name: ".".join(row[i] for i in differ or [len(row) - 1])
        for name, row in zip(names, parts, strict=True)
    }


def _exponent(text: str) -> str:
    return re.sub(r"e([+-])0+(?=\d)", r"e\1", text).replace("e+", "e")


def _round(value: float, rounding: str) -> str:
    exact = Decimal(repr(value))
    rounded = exact.quantize(Decimal(1).scaleb(exact.adjusted() - 1), rounding=rounding)
    return _exponent(f"{float(rounded):.2g}")
