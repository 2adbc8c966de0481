"""The page in a real headless browser: sorting, filtering, the keyboard, the policy, and the width of a phone."""

import pytest

from tests.helpers import browser
from tests.helpers.report_pages import HOSTILE, filled, page_of

NAMES = (*HOSTILE, *(f"plain-{index}.jpg" for index in range(11)))
SHIFT = 0x02000000
VISIBLE = "[...document.querySelectorAll('#rows tr')].filter(r => !r.hidden)"
ORDER = f"{VISIBLE}.map(r => r.cells[0].textContent)"
COUNT = "document.getElementById('count').textContent"
FOCUS = "document.activeElement.id || document.activeElement.textContent.trim()"
TEXTS = ("body", *(f"td.verdict.{word}" for word in ("real", "unsure", "generated", "failed")), "dt", "label", "a")
SORTED = "[...document.querySelectorAll('th[aria-sort]')].map(h => [h.dataset.key, h.getAttribute('aria-sort')])"


def put(field, value):
    return (
        f"(f => {{ f.value = {value!r}; f.dispatchEvent(new Event('input', {{bubbles: true}})); return 1 }})"
        f"(document.getElementById('{field}'))"
    )


def click(key):
    return f"(document.querySelector('th[data-key={key}] button').click(), 1)"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    reason = browser.missing()
    if reason is not None:
        pytest.skip(reason)
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page_of(filled(names=NAMES, errors=2)), encoding="utf-8")
    return path


def test_sorting_filtering_and_the_policy(page):
    wait = {"wait": 300}
    steps = [
        ORDER, SORTED,
        click("probability"), ORDER, SORTED,
        click("probability"), ORDER, SORTED, "document.getElementById('order').value",
        put("order", "index,1"), ORDER,
        put("verdict", "generated"), wait, ORDER, COUNT,
        put("name", "PLAIN-1"), wait, ORDER, COUNT,
        put("name", ""), put("verdict", ""), put("lowest", "0.5"), put("highest", "0.6"), wait, ORDER, COUNT,
        "(document.querySelector('button[type=reset]').click(), 1)", wait, ORDER, COUNT,
        put("name", "<script>"), wait, ORDER,
        "document.scripts.length",
        "[...document.images].filter(i => i.loading === 'eager' || i.complete).every(i => i.naturalWidth > 0)",
        "getComputedStyle(document.querySelector('.notice, .summary')).color",
        "getComputedStyle(document.querySelector('td.verdict.generated')).fontWeight",
    ]  # fmt: skip
    seen = browser.browse(page, steps)
    assert seen["console"] == [], "an error, or something that the policy refused"
    values = iter(seen["values"])
    everything = [str(number) for number in range(1, 23)]
    scored, failures = everything[:20], everything[20:]
    assert next(values) == everything
    assert next(values) == [["index", "ascending"]]
    next(values)
    assert next(values) == scored + failures
    assert next(values) == [["probability", "ascending"]]
    next(values)
    assert next(values) == scored[::-1] + failures, "what failed stands last either way"
    assert next(values) == [["probability", "descending"]]
    assert next(values) == "probability,-1"
    next(values)
    assert next(values) == everything
    next(values)
    assert next(values) == ["15", "16", "17", "18", "19", "20"]
    assert next(values) == "6 of 22 rows shown"
    next(values)
    assert next(values) == ["20"]
    assert next(values) == "1 of 22 rows shown"
    for _ in range(4):
        next(values)
    assert next(values) == ["11", "12"]
    assert next(values) == "2 of 22 rows shown"
    next(values)
    assert next(values) == everything
    assert next(values) == "22 of 22 rows shown"
    next(values)
    assert next(values) == ["1"], "a name that looks like markup is text to be searched"
    assert next(values) == 1
    assert next(values) is True
    next(values)
    assert next(values) == "600", "the style sheet is in force"


def test_the_keyboard_reaches_everything_and_sorts(page):
    tab, back = {"key": "Tab"}, {"key": "Tab", "with": SHIFT}
    steps = [tab, FOCUS, "getComputedStyle(document.activeElement).outlineStyle"]
    steps += [tab, FOCUS, tab, FOCUS, tab, FOCUS, tab, FOCUS, tab, FOCUS, tab, FOCUS, tab, FOCUS]
    steps += [tab, FOCUS, tab, FOCUS, {"key": "Space"}, SORTED, FOCUS, {"key": "Return"}, SORTED, back, FOCUS]
    seen = browser.browse(page, steps)
    assert seen["console"] == []
    reached = seen["values"]
    assert reached[0] == "Skip to the table of images"
    assert reached[1] == "solid"
    assert reached[2:9] == ["The same in words", "name", "verdict", "lowest", "highest", "order", "Show all"]
    assert reached[9:11] == ["No.", "Image"]
    assert reached[11] == [["name", "ascending"]]
    assert reached[12] == "Image", "sorting leaves the focus where it was"
    assert reached[13] == [["name", "descending"]]
    assert reached[14] == "No."


@pytest.mark.parametrize("width", [390, 320, 1280])
def test_no_width_needs_to_scroll_sideways(page, width):
    wide = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    outside = (
        "[...document.querySelectorAll('body *')]"
        ".filter(e => !e.closest('thead') && e.getBoundingClientRect().right > innerWidth + 1)"
        ".map(e => e.outerHTML.slice(0, 80))"
    )
    small = (
        "[...document.querySelectorAll('input, select, button')]"
        ".filter(e => e.offsetParent !== null && !e.closest('thead') && e.getBoundingClientRect().height < 44)"
        ".map(e => e.outerHTML)"
    )
    roles = "[...document.querySelectorAll('#rows tr:first-child td')].map(e => e.getAttribute('role'))"
    seen = browser.browse(page, ["innerWidth", wide, outside, small, roles], width=width, height=800)
    assert seen["console"] == []
    assert seen["values"] == [width, True, [], [], ["cell"] * 6]


def test_dark_pages_are_dark_and_readable(page):
    """Contrast of text and background as WCAG 2 counts it: 4.5 at least for every kind of text."""
    contrast = f"""(() => {{
      const part = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
      const light = (colour) => {{
        const [r, g, b] = colour.match(/[0-9.]+/g).map(Number).map((v) => part(v / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      }};
      const paper = light(getComputedStyle(document.body).backgroundColor);
      return {list(TEXTS)}.map((s) => {{
        const ink = light(getComputedStyle(document.querySelector(s)).color);
        return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
      }});
    }})()"""
    background = "getComputedStyle(document.body).backgroundColor"
    papers = []
    for dark in (False, True):
        seen = browser.browse(page, [background, contrast], dark=dark)
        papers.append(seen["values"][0])
        assert min(seen["values"][1]) >= 4.5, seen["values"]
    assert papers == ["rgb(255, 255, 255)", "rgb(22, 24, 27)"]
