"""report.html: one file that holds the numbers, loads nothing and trusts no text."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from report import run_folders as made
from tangentlora.report.page import write_report

VOID = {"meta", "link", "br", "img", "path", "use", "rect"}
HOSTILE = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID - {"path", "use", "rect"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def report(path: Path, values: dict, proof: dict | None = None) -> tuple[str, Page]:
    text = write_report(made.write(path, values, proof)).read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[str, Page]:
    path = tmp_path_factory.mktemp("runs") / "my demo"
    folder = made.write(path, made.demo())
    folder.write_json("adapter/adapter_config.json", {"auto_mapping": {"base_model_class": "BertModel"}})
    return report(path, made.demo(), made.certificate())


def test_the_verdict_comes_first_and_the_numbers_follow(demo: tuple[str, Page]) -> None:
    words = demo[1].text
    places = [
        "The certified solver found the best answer: its objective 0.731247",
        "The certificate of the answer “certified”",
        "The runs side by side",
        "Figures",
        "The real network beside the linearised one",
        "Check it, use it",
        "Configuration",
    ]
    assert sorted(places, key=words.index) == places
    for number in (
        "0.7312464997",
        "3.1e-10",
        "4.2e-13",
        "0.712345",
        "192",
        "384 × 384",
        "0.940000",
        "0.631",
        "3.810000",
    ):
        assert number in words
    assert "for this answer the sum is 6." in words
    assert "torch 2.13.0" in words
    assert "readout.kind prototypes" in words
    assert "takes 7.34 MB; as dense Jacobians it would take 302 MB" in words


def test_epochs_to_each_distance_are_in_the_table(demo: tuple[str, Page]) -> None:
    row = demo[1].text.split("full fine-tuning 0.731247 9.0e-7 yes yes 4 500")[1]
    assert row.split()[:2] == ["80", "160"]


def test_nothing_is_loaded_from_elsewhere(demo: tuple[str, Page]) -> None:
    text, page = demo
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action", "data"):
            if (value := attributes.get(name)) is not None:
                assert value.startswith("#") or (tag == "link" and value == "data:,")
    assert not re.search(r"url\((?!#)", text)
    assert "@import" not in text
    assert "script" not in {tag for tag, _ in page.tags}
    assert "default-src 'none'" in text


def test_ids_are_unique_and_every_reference_meets_one(demo: tuple[str, Page]) -> None:
    text, page = demo
    ids = Counter(attributes["id"] for _, attributes in page.tags if "id" in attributes)
    assert set(ids.values()) == {1}
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', text)) <= set(ids)


def test_figures_follow_the_theme_and_have_a_text(demo: tuple[str, Page]) -> None:
    text, page = demo
    images = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(images) == 5
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in images)
    figures = text[text.index("<figure>") : text.rindex("</figure>")]
    assert "#1f2328" not in figures
    assert "var(--ink)" in figures


def test_the_commands_name_the_folder_and_the_class(demo: tuple[str, Page]) -> None:
    words = demo[1].text
    assert "tangentlora verify 'my demo'" in words
    assert 'BertModel.from_pretrained("sentence-transformers/all-MiniLM-L6-v2")' in words
    assert 'PeftModel.from_pretrained(model, "my demo/adapter")' in words


def test_the_figures_are_written_too(tmp_path: Path) -> None:
    report(tmp_path, made.run([made.answer("LoRA r=8", made.LIMITS[8], rank=8)]))
    assert (tmp_path / "figures" / "objective.svg").exists()


def test_hostile_text_is_shown_and_never_run(tmp_path: Path) -> None:
    layer = f"encoder.{HOSTILE}"
    values = made.run([made.answer(HOSTILE, 0.9, rank=2, folder=".", message=HOSTILE, ranks={layer: 2})])
    values["data"] |= {"label_names": [HOSTILE, "a & b"], "task": HOSTILE}
    values["configuration"] |= {"model": f'"{HOSTILE}', "template": {HOSTILE: HOSTILE}}
    values["versions"] |= {HOSTILE: HOSTILE}
    folder = made.write(tmp_path, values)
    folder.write_json("adapter/adapter_config.json", {"auto_mapping": {"base_model_class": HOSTILE}})
    text, page = report(tmp_path, values, made.certificate(ranks={layer: 2}, spectral_norms={layer: 0.1}))
    assert HOSTILE not in text
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(HOSTILE) >= 10
    assert "labels <script>alert(1)</script> and a & b" in page.text
    assert "from transformers import AutoModel" in page.text


def test_a_single_run_without_a_test_set(tmp_path: Path) -> None:
    values = made.run([made.answer("LoRA r=8", made.LIMITS[8], rank=8, folder=".")], test_set=False)
    _, page = report(tmp_path, values, made.certificate(certified=False, relative_gap=1.2e-4))
    assert "Not certified LoRA r=8 is not certified at the tolerance 1e-6" in page.text
    assert "none held out" in page.text
    assert "Training accuracy 0.900" in page.text
    assert "held-out loss" not in page.text
    assert "Here the gap is above the tolerance" in page.text


def test_a_diverged_run(tmp_path: Path) -> None:
    values = made.run([made.answer("LoRA r=8", None, rank=8, folder=".", ranks={}, singular_values={})])
    _, page = report(tmp_path, values)
    assert "There is no certificate" in page.text
    assert "not finite" in page.text
    assert "There is no adapter to load." in page.text
    assert "2 layers adapted" in page.text
    assert "tangentlora verify" not in page.text


def test_a_certificate_without_finite_numbers(tmp_path: Path) -> None:
    proof = made.certificate(
        objective=None, gap=float("nan"), dual_scale=None, spectral_norms={made.QUERY: None}
    )
    _, page = report(tmp_path, made.run([made.certified()]), proof | {"certified": False})
    assert "Duality gap –" in page.text


def test_an_answer_of_rank_zero(tmp_path: Path) -> None:
    ranks = {made.QUERY: 0, made.VALUE: 0}
    _, page = report(tmp_path, made.run([made.certified(ranks=ranks)]), made.certificate(ranks=ranks))
    assert "There is no adapter to load: the answer changes no layer." in page.text
    assert "0, unchanged" in page.text
    assert "try a lower λ" in page.text
