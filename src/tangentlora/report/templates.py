"""Templates become text here: everything put into one is escaped, and an unknown name is an error."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangentlora.report import standing, wording

if TYPE_CHECKING:
    from markupsafe import Markup


def render(template: str, **context: Any) -> str:
    """Return a template of this folder filled in; every value is escaped for HTML unless it is Markup."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "accuracy": wording.accuracy,
        "data_size": wording.data_size,
        "listing": wording.listing,
        "mark": standing.mark,
        "markdown": escape_markdown,
        "number": wording.number,
        "pyramid": lambda ranks: sum(r * (r + 1) // 2 for r in ranks),
        "percent": standing.percent,
        "plain": wording.plain,
        "precise": wording.precise,
        "relative": wording.relative,
        "tolerance": wording.tolerance,
        "unbroken": unbroken,
        "yaml": quote_yaml,
    }
    return environment.get_template(template).render(context)


def unbroken(sentence: str) -> Markup:
    """Return a sentence for HTML whose numbers such as 2.1e-5 are never split at the end of a line."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"\d[\d.]*e-\d+", r'<span class="whole">\g<0></span>', str(escape(sentence))))


def escape_markdown(value: object) -> Markup:
    """Return text that Markdown shows as it is, on one line: neither its signs nor HTML are read as such."""
    from markupsafe import Markup

    line = " ".join(str(value).split())
    return Markup(html.escape(re.sub(r"([\\`*_{}\[\]()|~$!])", r"\\\1", line), quote=False))


def quote_yaml(value: str) -> Markup:
    """Return a double-quoted YAML scalar; JSON's quoting is also YAML's."""
    from markupsafe import Markup

    return Markup(json.dumps(value))
