"""Maps, scales and panels: what is shown is what was computed, at its place, on one scale."""

import dataclasses
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from lare2_rt import Detector, UsageError
from lare2_rt.detection import DecisionRule
from lare2_rt.errors import OutputError
from lare2_rt.tools.evidence.drawing import decimals, drawable, fitted, font, zones
from lare2_rt.tools.evidence.maps import (
    SHARE,
    Scale,
    Scales,
    Spread,
    attention_map,
    bar,
    colours,
    lare_map,
    overlay,
    run_scales,
)
from lare2_rt.tools.evidence.panel import HEIGHT, WIDTH, attention_tile, lare_tile, render_panel, shown_size
from lare2_rt.tools.evidence.record import evidence_of, pack, unpack, without_arrays
from lare2_rt.tools.evidence.run import Heatmaps, panel_name
from tests.conftest import ROOT
from tests.fakes.engine import FakeEngine, use_engines
from tests.helpers.commands import call


@pytest.fixture
def fake(monkeypatch):
    """An engine whose maps are given: LaRE is hot in the upper left corner, attention in the lower right one."""

    def script(call, output):
        output.lare[:] = 0.5
        output.lare[:, :, :16, :16] = 5.0
        output.attention[:] = 0.5 / 196
        output.attention.reshape(-1, 8, 14, 14)[:, :, 7:, 7:] = 2.0 / 196

    use_engines(monkeypatch, FakeEngine(script))


@pytest.fixture
def detector(embedded, fake):
    with Detector.load(embedded, keep_views=True) as opened:
        yield opened


def picture(width, height, seed=0):
    return np.random.default_rng(seed).integers(90, 120, (height, width, 3), np.uint8)


def test_maps_are_the_arrays_of_the_result(detector):
    result = detector.detect(picture(500, 300))
    assert np.allclose(lare_map(result), result.lare.mean(0))
    (attention,) = attention_map(result)
    assert attention.shape == (14, 14)
    assert np.allclose(attention[7:, 7:], 2.0)
    assert np.allclose(attention[:7], 0.5)


@pytest.mark.parametrize("size", [(500, 300), (300, 500), (4000, 40), (7, 900), (1, 1), (256, 256)])
def test_maps_lie_where_the_branches_looked(detector, size):
    """The hot quarter of each map is the hot quarter of the picture, whatever its shape."""
    evidence = evidence_of(detector.detect(picture(*size)))
    scales = Scales(Scale(0, 5), Scale(0, 2))
    shown = shown_size(evidence)
    assert max(shown) == 384
    for tile, hot in (
        (lare_tile(evidence, scales.lare, shown), (0, 0)),
        (attention_tile(evidence, scales.attention), (1, 1)),
    ):
        red = tile.astype(float).sum(2)
        quarters = {
            (y, x): red[y * len(red) // 2 :, x * red.shape[1] // 2 :][: len(red) // 2, : red.shape[1] // 2].mean()
            for y in (0, 1)
            for x in (0, 1)
        }
        assert max(quarters, key=quarters.get) == hot, quarters


def test_each_window_of_a_mosaic_is_at_its_place(embedded, monkeypatch):
    from tests.runtime.test_crops import Windows

    use_engines(monkeypatch, Windows())
    canvas = np.zeros((600, 900, 3), np.uint8)
    canvas[:, 600:] = 255
    with Detector.load(embedded, keep_views=True, crops=9) as detector:
        evidence = evidence_of(detector.detect(canvas))
    tile = attention_tile(evidence, Scale(0, 2))
    assert tile.shape == (383, 383, 3)
    assert tile[:, 300:].mean() > tile[:, :80].mean() + 20


def test_colours_are_those_of_the_bar(detector):
    flat = np.full((10, 10, 3), 128, np.uint8)
    scale = Scale(1.0, 3.0)
    shown = bar(201, 1, "inferno")[0]
    for value in (0.5, 1.0, 1.5, 2.0, 3.0, 99.0):
        tile = overlay(flat, np.full((4, 4), value, np.float32), scale, "inferno")
        place = round(min(max((value - 1) / 2, 0), 1) * 200)
        assert np.abs(tile[5, 5].astype(int) - shown[place]).max() <= 1


@pytest.mark.parametrize("name", ["inferno", "viridis"])
def test_colour_maps_rise_evenly_in_lightness_and_are_their_source(name):
    rgb = colours(np.linspace(0, 1, 256), name) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    light = 116 * np.cbrt(np.maximum(linear @ [0.2126, 0.7152, 0.0722], 0.008856)) - 16
    assert (np.diff(light) >= -1e-6).all()
    assert light[-1] - light[0] > 70
    matplotlib = pytest.importorskip("matplotlib")
    assert np.abs(rgb - matplotlib.colormaps[name](np.linspace(0, 1, 256))[:, :3]).max() * 255 <= 7
    assert (colours(np.array([-1.0, 2.0]), name) == colours(np.array([0.0, 1.0]), name)).all()


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=400), st.randoms())
@settings(max_examples=100, deadline=None)
def test_the_scale_covers_all_but_its_share_in_any_order(values, random):
    spread, other = Spread(), Spread()
    spread.add(np.array(values))
    shuffled = values[:]
    random.shuffle(shuffled)
    for value in shuffled:
        other.add(np.array([value]))
    scale = spread.scale()
    assert scale == other.scale()
    array = np.array(values)
    slack = 1.005  # a bin of the histogram
    assert (array < scale.low / slack).mean() <= SHARE
    assert (array > scale.high * slack).mean() <= SHARE


def test_scales_are_robust_and_never_blow_up_noise():
    wild = np.full(10_000, 1.0)
    wild[:1000] = np.linspace(0.5, 2, 1000)
    wild[-20:] = 1e5
    assert run_scales([wild], [wild]).lare.high <= 2
    flat = Spread()
    flat.add(np.full(1000, 0.7) + np.linspace(-1e-6, 1e-6, 1000))
    scale = flat.scale()
    assert scale.low < 0.65
    assert scale.high > 0.75
    zero = Spread()
    zero.add(np.zeros(5))
    assert zero.scale() == Spread().scale() == Scale(0, 1)
    for low, high in ((1, 1), (-1, 2), (0, float("inf")), (float("nan"), 1)):
        with pytest.raises(UsageError, match="0 <= low < high"):
            Scale(low, high)


def test_panels_need_a_view_and_a_result(embedded, fake, tmp_path):
    with Detector.load(embedded) as plain:
        with pytest.raises(UsageError, match="load the detector with keep_views=True"):
            render_panel(plain.detect(picture(50, 50)))
        (failed,) = plain.detect_many([tmp_path / "none.jpg"])
    with pytest.raises(UsageError, match="has no result"):
        lare_map(failed)


@pytest.mark.parametrize(
    "rule",
    [
        DecisionRule("untrained"),
        DecisionRule("uncalibrated"),
        DecisionRule("calibrated", 0.2, 0.8),
        DecisionRule("calibrated", 0.0, 1.0),
        DecisionRule("calibrated", 0.9999, 0.9999, crops=9),
    ],
)
@pytest.mark.parametrize("probability", [0.0, 1e-9, 0.5, 1.0])
def test_panels_are_drawn_for_every_rule(detector, rule, probability):
    result = detector.detect(picture(400, 30))
    panel = render_panel(
        dataclasses.replace(result, rule=rule, probability=probability, verdict=rule.verdict(probability))
    )
    assert panel.size == (WIDTH, HEIGHT)
    assert panel.mode == "RGB"


def test_the_band_says_what_the_rule_does():
    for rule in (
        DecisionRule("calibrated", 0.2, 0.8),
        DecisionRule("calibrated", 0.5, 0.5),
        DecisionRule("untrained", 0.5, 0.5),
    ):
        stretches = zones(rule)
        assert stretches[0].begin == 0
        assert stretches[-1].end == 1
        for zone in stretches:
            assert rule.verdict((zone.begin + zone.end) / 2) == zone.verdict
    assert [decimals(p) for p in (0, 1, 0.25, 1e-9, 1 - 1e-9)] == ["0.0000", "1.0000", "0.2500", "< 0.0001", "> 0.9999"]


def test_a_panel_depends_on_the_scale_and_shows_the_name(detector):
    result = detector.detect(picture(90, 90))
    one, two = (render_panel(result, Scales(Scale(0, high), Scale(0, 2))) for high in (3, 6))
    assert one.tobytes() != two.tobytes()
    assert one.tobytes() == render_panel(result, Scales(Scale(0, 3), Scale(0, 2))).tobytes()
    other = dataclasses.replace(result, source="other")
    assert render_panel(other, Scales(Scale(0, 3), Scale(0, 2))).tobytes() != one.tobytes()


def test_what_is_put_aside_comes_back(detector):
    evidence = evidence_of(detector.detect(picture(300, 200)))
    back = unpack(without_arrays(evidence), pack(evidence))
    for field in dataclasses.fields(evidence):
        ours, theirs = getattr(evidence, field.name), getattr(back, field.name)
        assert np.array_equal(ours, theirs) if isinstance(ours, np.ndarray) else ours == theirs


HOSTILE = [
    "../../etc/passwd",
    "a\nb\x1b[31m.jpg",
    "\udcff\u202e.png",
    "<script>.png",
    "-rf",
    ".",
    "",
    "CON.jpg",
    "x" * 300,
    "中文.jpg",
    "a b.jpg",
]


def test_panel_names_are_plain_unique_and_stable():
    names = [panel_name(source) for source in HOSTILE]
    assert len({name.lower() for name in names}) == len(HOSTILE)
    for name in names:
        assert name.isascii()
        assert len(name) < 100
        assert not set(name) & set('/\\:*?"<>|\n ')
        assert name[0].isalnum()
    assert panel_name("photos/a.jpg") == "a-58d4d8dec171.png"
    assert panel_name("one/a.jpg") != panel_name("two/a.jpg")


def test_hostile_names_are_drawn_as_escapes():
    for name in HOSTILE:
        assert drawable(name).isascii()
        assert drawable(name).isprintable()
        assert font(20).getlength(fitted(drawable(name), 200, 20)) <= 200
    long = fitted("/a/very/long/folder/" * 9 + "name.jpg", 300, 20)
    assert long.startswith("/a/")
    assert long.endswith("name.jpg")


def test_the_folder_of_panels(detector, tmp_path):
    results = [
        dataclasses.replace(detector.detect(picture(60, 40, seed)), source=name)
        for seed, name in enumerate(HOSTILE[:4])
    ]
    scales = Scales(Scale(0, 5), Scale(0, 2))
    with Heatmaps(tmp_path / "panels") as heatmaps:
        for result in [*results, results[0]]:
            heatmaps.add(evidence_of(result))
        assert list((tmp_path / "panels").iterdir()) == [], "nothing is there before it is complete"
        heatmaps.write(scales)
    head, *lines = map(json.loads, (tmp_path / "panels/panels.jsonl").read_text().splitlines())
    assert head["scales"] == {"lare": [0, 5], "attention": [0, 2]}
    assert [line["source"] for line in lines] == HOSTILE[:4]
    assert {line["panel"] for line in lines} | {"panels.jsonl"} == {p.name for p in (tmp_path / "panels").iterdir()}
    for line, result in zip(lines, results, strict=True):
        with Image.open(tmp_path / "panels" / line["panel"]) as panel:
            assert panel.tobytes() == render_panel(result, scales).tobytes(), "the command draws what the library draws"


def test_places_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("x")
    for place, words in (
        (tmp_path / "file", "not a folder"),
        (tmp_path / "no/where", "does not exist"),
        (tmp_path, "is not empty"),
    ):
        with pytest.raises(OutputError, match=words):
            Heatmaps(place)
    with Heatmaps(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists(), "a folder that nothing came into is not left behind"


def test_the_command_draws_one_panel_an_image_on_one_scale(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    run = call("infer", photos[0], "bad.jpg", photos[2], "--heatmap", "panels", "--out", "r.jsonl", "--no-isolate")
    assert run.returncode == 1, run.stderr
    assert "panels are in panels" in run.stderr
    head, *lines = map(json.loads, (tmp_path / "panels/panels.jsonl").read_text().splitlines())
    assert [line["source"] for line in lines] == [str(photos[0]), str(photos[2])]
    low, high = head["scales"]["lare"]
    with Detector.load(keep_views=True) as detector:
        results = list(detector.detect_many([photos[0], photos[2]]))
    scales = run_scales([lare_map(r) for r in results], [attention_map(r) for r in results])
    assert (scales.lare.low, scales.lare.high) == (low, high)
    with Image.open(tmp_path / "panels" / lines[1]["panel"]) as panel:
        assert panel.tobytes() == render_panel(results[1], scales).tobytes()
    again = call("infer", photos[0], "--heatmap", "panels")
    assert again.returncode == 2
    assert "pass --force to add to it" in again.stderr


def test_interrupted_runs_say_what_is_missing(tmp_path, photos):
    """No panel on half a scale; the page names itself partial."""
    from tests.helpers.processes import environment

    child = tmp_path / "child.py"
    child.write_text(
        "import time\n"
        "from lare2_rt.engines import registry\n"
        "from tests.fakes.engine import FakeEngine, entry\n"
        "def script(call, output):\n"
        "    if call == 3:\n"
        "        import os, signal; os.kill(os.getpid(), signal.SIGINT); time.sleep(0.2)\n"
        "registry.ENGINES = (entry(FakeEngine(script)),)\n"
        "from lare2_rt.cli import main\n"
        "main()\n"
    )
    options = ("--heatmap", "p", "--report", "r.html", "--no-isolate", "--format", "jsonl")
    arguments = ["infer", *map(str, photos), *options]
    run = subprocess.run(
        [sys.executable, child, *arguments], cwd=tmp_path, capture_output=True, text=True, env=environment(ROOT)
    )
    assert run.returncode == 128 + signal.SIGINT, run.stderr
    assert "no panels were drawn in p, as their colours need the whole run" in run.stderr
    assert "Traceback" not in run.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"child.py", "r.partial.html"}
    done = len(run.stdout.splitlines())
    assert f"The run was stopped after {done} of {len(photos)} images" in (tmp_path / "r.partial.html").read_text()
