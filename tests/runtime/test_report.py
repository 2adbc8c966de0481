"""The page of a run, read as a browser's parser reads it: nothing from outside, nothing unescaped, everything named."""

import base64
import hashlib
import html
import re
import tracemalloc
from html.parser import HTMLParser

import pytest

from lare2_rt.detection import DecisionRule
from lare2_rt.host.text import printable
from lare2_rt.tools.evidence import report as report_module
from lare2_rt.tools.evidence.panel import MOST, MostLikely
from lare2_rt.tools.evidence.record import evidence_of
from lare2_rt.tools.evidence.report import BINS, Histogram, Report
from tests.helpers.commands import call
from tests.helpers.report_pages import CALIBRATED, HOSTILE, SCALES, add, facts, filled, page_of, result

VOID = {"meta", "link", "input", "img", "br", "hr", "path", "rect"}


class Parsed(HTMLParser):
    """Every element with its attributes, the text within, and whether elements are nested well."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.stack, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attributes):
        assert len({name for name, _ in attributes}) == len(attributes), f"an attribute twice in {tag}"
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.stack[-1] if self.stack else "", data))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, tag):
        return [data for name, data in self.texts if name == tag]


@pytest.fixture(scope="module")
def page():
    return page_of(filled())


@pytest.fixture(scope="module")
def parsed(page):
    return Parsed(page)


def test_nothing_is_loaded_and_nothing_runs_that_is_not_ours(page, parsed):
    """Only elements and attributes that the page needs; every address is data or a place in the page."""
    for tag, attributes in parsed.elements:
        assert tag not in {"iframe", "object", "embed", "link", "base", "audio", "video", "source"}, tag
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in {"style", "srcset", "action", "formaction", "ping", "background"}, (tag, name)
            if name in {"src", "href", "xlink:href"}:
                assert value.startswith(("data:image/jpeg;base64,", "data:image/png;base64,", "#")), value
    assert len(parsed.all("script")) == len(parsed.all("style")) == 1
    assert parsed.all("script") == [{}]
    assert "url(" not in page
    assert "@import" not in page
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|eval|innerHTML|localStorage)\b", page)


def test_the_policy_allows_these_very_texts_and_nothing_else(parsed):
    (policy,) = [meta["content"] for meta in parsed.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert set(rules) == {"default-src", "img-src", "style-src", "script-src", "base-uri", "form-action"}
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data:"
    for kind in ("script", "style"):
        text = "".join(parsed.text(kind))
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[f"{kind}-src"] == f"'sha256-{digest}'"
    before = [tag for tag, _ in parsed.elements]
    assert before.index("meta") < before.index("style") < before.index("script")
    policy_at = [meta.get("http-equiv") for meta in parsed.all("meta")].index("Content-Security-Policy")
    assert policy_at <= 1, "what stands before the policy is not under it"


def test_every_name_is_shown_and_none_is_markup(page, parsed):
    names = parsed.text("bdi")
    assert names[: len(HOSTILE)] == [printable(name) for name in HOSTILE]
    rows = [attributes for attributes in parsed.all("tr") if "data-name" in attributes]
    assert [row["data-name"] for row in rows][: len(HOSTILE)] == [printable(name) for name in HOSTILE]
    assert len(parsed.all("b")) == len(parsed.all("i")) == 0, "of the bundle's name and description"
    assert len(parsed.all("img")) == 3 * len(HOSTILE) + 2
    page.encode("utf-8")
    assert all(character.isprintable() or character == "\n" for character in page)


def test_form_fields_have_labels_and_pictures_have_words(parsed):
    labels = {label["for"] for label in parsed.all("label")}
    fields = [field for tag in ("input", "select") for field in parsed.all(tag)]
    assert {field["id"] for field in fields} == labels
    assert all(image["alt"] for image in parsed.all("img"))
    assert all(int(image["width"]) > 0 and int(image["height"]) > 0 for image in parsed.all("img"))
    identities = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(set(identities)) == len(identities)
    for _, attributes in parsed.elements:
        for name in ("aria-labelledby", "href"):
            if attributes.get(name, "").startswith("#") or (name == "aria-labelledby" and name in attributes):
                assert attributes[name].lstrip("#") in identities
    assert parsed.all("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in parsed.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert set(levels[1:]) == {2}


def test_rows_hold_what_the_script_sorts_by(parsed):
    rows = [attributes for attributes in parsed.all("tr") if "data-name" in attributes]
    probabilities = [float(row["data-probability"]) for row in rows if "data-probability" in row]
    assert probabilities == pytest.approx([(i + 0.5) / len(HOSTILE) for i in range(len(HOSTILE))])
    assert [row["data-verdict"] for row in rows] == ["real"] * 3 + ["unsure"] * 3 + ["generated"] * 3 + ["failed"]
    assert "not <b>an</b> image 0; convert it" in parsed.text("span")


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (DecisionRule("untrained"), "This model is untrained and cannot tell generated from real"),
        (DecisionRule("uncalibrated"), "This bundle is uncalibrated"),
    ],
)
def test_it_says_why_every_verdict_is_unsure(rule, words):
    parsed = Parsed(page_of(filled(rule=rule), rule))
    assert any(text.startswith(words) for text in parsed.text("p"))
    assert any("for the reason at the top" in data for _, data in parsed.texts)
    assert {row["data-verdict"] for row in parsed.all("tr") if "data-name" in row} == {"unsure", "failed"}


def test_other_windows_and_a_stopped_run_stand_at_the_top():
    report = filled()
    text = "".join(report.pieces(SCALES, facts(CALIBRATED, crops=9), stopped="the run was stopped"))
    notices = Parsed(text).text("p")
    assert any("calibrated with --crops 1 and is used with --crops 9" in notice for notice in notices)
    assert "The run was stopped." in notices


def test_histogram_counts_and_thresholds():
    histogram = Histogram()
    for probability in (0.0, 0.049, 0.05, 0.999, 1.0, 1.0):
        histogram.add(probability)
    assert (
        histogram.sentence()
        == "Of 6 probabilities, 2 between 0.00 and 0.05, 1 between 0.05 and 0.10, 3 between 0.95 and 1.00."
    )
    for rule, lines in ((CALIBRATED, 2), (DecisionRule("calibrated", 0.5, 0.5), 1), (DecisionRule("untrained"), 0)):
        drawn = Parsed(histogram.svg(rule))
        assert len([path for path in drawn.all("path") if path["class"] == "threshold"]) == lines
        bars = [float(bar["height"]) for bar in drawn.all("rect") if bar["class"] == "bar"]
        assert bars == pytest.approx([160 * 2 / 3, 160 / 3, 160], abs=0.01)
    assert Parsed(Histogram().svg(CALIBRATED)).text("title") == ["No image was scored."]
    assert BINS == 20
    extreme = Parsed(histogram.svg(DecisionRule("calibrated", 1e-9, 1 - 1e-9)))
    assert any("> 0.9999" in text for text in extreme.text("text"))


def test_the_same_run_gives_the_same_page():
    assert page_of(filled()) == page_of(filled())


def test_the_likeliest_get_the_small_pictures():
    kept = MostLikely(most=3)
    for index, probability in enumerate((0.5, 0.9, 0.1, 0.9, 0.7, 0.9, 0.2)):
        kept.add(index, evidence_of(result(f"{index}", probability)))
    drawn = kept.draw(SCALES)
    assert set(drawn) == {1, 3, 5}
    assert drawn[1].size == (168, 112)


@pytest.mark.parametrize("total", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_images_make_a_page_of_bounded_size_and_memory(total):
    report = Report()
    tracemalloc.start()
    for index in range(500):
        add(report, result(f"folder/image-{index}.jpg", (index % 97 + 1) / 100))
    early = tracemalloc.get_traced_memory()[0]
    for index in range(500, total):
        add(report, result(f"folder/image-{index}.jpg", (index % 97 + 1) / 100, picture=index % 100 == 0))
    late = tracemalloc.get_traced_memory()[0]
    size = rows = pictures = 0
    sentence = False
    for piece in report.pieces(SCALES, facts()):
        size += len(piece)
        rows += piece.count("<tr role")
        pictures += piece.count('alt="LaRE"')
        sentence = sentence or f"Only the {MOST} images with the highest probability have small pictures" in piece
    tracemalloc.stop()
    assert late - early < 10e6
    assert rows == total + 1
    assert pictures == MOST
    assert sentence
    assert size < 15e6


def test_too_many_rows_are_left_out_with_a_sentence(monkeypatch):
    monkeypatch.setattr(report_module, "MOST_ROWS", 5)
    text = page_of(filled())
    assert text.count("<tr role") == 6
    assert "the table has the first 5 of 10 images" in html.unescape(text).lower()
    assert "3 generated, 3 real, 3 unsure, 1 failed" in text


def test_the_command_writes_the_page(rocket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "<b>bad.jpg").write_bytes(b"no image")
    run = call("infer", rocket, "<b>bad.jpg", "--report", "r.html", "--out", "r.jsonl", "--no-isolate")
    assert run.returncode == 1, run.stderr
    assert "the report is in r.html" in run.stderr
    parsed = Parsed((tmp_path / "r.html").read_text())
    assert parsed.text("bdi") == [str(rocket), "<b>bad.jpg"]
    assert parsed.text("h1") == ["LaRE² report: 2 images"]
    assert any("this model is" in notice.lower() for notice in parsed.text("p"))
    before = (tmp_path / "r.html").read_bytes()
    again = call("infer", rocket, "--report", "r.html")
    assert again.returncode == 2
    assert "pass --force to replace it" in again.stderr
    assert (tmp_path / "r.html").read_bytes() == before
    both = call("infer", rocket, "--report", "x.jsonl", "--out", "x.jsonl")
    assert both.returncode == 2
    assert "cannot be both --report and --out" in both.stderr


def test_a_page_that_cannot_be_written_is_a_sentence(rocket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = call("infer", rocket, "--report", "no/where.html")
    assert run.returncode == 2
    assert "the folder no does not exist" in run.stderr
