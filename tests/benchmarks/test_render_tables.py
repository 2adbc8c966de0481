"""Tables and plot made of the benchmark's reports."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

from benchmarks.render import (
    __main__ as render_tables,
    claim as render_claim,
    fidelity as render_fidelity,
    profile as render_profile,
    throughput as render_throughput,
)
from lare2_rt.errors import UsageError


def measured_row(name, kind, **changes):
    row = {
        "name": name, "kind": kind, "title": "t", "stands_for": "s", "status": "measured", "session": "2026-11-24T10",
        "builds": {}, "import_s": 1.0, "load_s": 2.0, "first_run_s": 9.5, "settings": {}, "same_bits_again": True,
        "latency_ms": {"p50": 9123.4, "p90": 9200.0, "p99": 9300.0}, "reference_latency_ms": {"p50": 9124.0},
        "images_per_second": 0.1096, "speedup": 1.0, "speedup_range": [0.99, 1.01], "gflops": 110.2,
        "share_of_peak": 0.594, "rounds": {"wanted": 8, "steady": 8, "strayed": 0, "tolerance": 0.1},
        "idle_cpu_share": {"reference": 0.0, "candidate": 0.001},
        "memory": {"peak_bytes": 5.2e9, "resident_bytes": 4.9e9},
        "components": {"vae_encoder": {"p50_ms": 1640.0, "reference_p50_ms": 2470.0, "speedup": 1.506}},
        "fidelity": {
            "latent": {"worst_relative_l2": 1.1e-6, "max_abs": 1e-5}, "noise_prediction": None,
            "embedding": {"worst_relative_l2": 4e-7, "max_abs": 1e-6},
            "lare": {"worst_relative_l2": 3.14e-6, "max_abs": 2e-5},
            "logit": {"max_difference": 3e-6, "over_standard_deviation": 1.2e-5},
        },
    }  # fmt: skip
    return {**row, **changes}


def sample_report():
    ours = measured_row(
        "winograd", "ours", latency_ms={"p50": 5800.0, "p90": 5900.0, "p99": 5950.0}, speedup=1.573,
        share_of_peak=0.934,
        rounds={"wanted": 8, "steady": 6, "strayed": 10, "tolerance": 0.1},
        idle_cpu_share={"reference": 0.0, "candidate": 0.05},
        builds={"a": {"seconds": 100.4, "peak_bytes": 8e9}, "b": {"seconds": 20.0, "peak_bytes": 1e9}},
    )  # fmt: skip
    missing = {
        "name": "openvino", "kind": "ours", "title": "t", "stands_for": "s", "status": "not usable",
        "reason": "openvino is not installed: pip install 'a|b'",
    }  # fmt: skip
    return {
        "schema": "lare2-rt/throughput/1", "model": "synthetic-sd15", "peak_gflops": 185.4, "images": ["a"] * 4,
        "machine": {"cpu": "CPU X", "architecture": "x86_64", "threads": 2, "memory_gb": 25.3, "system": "Linux",
                    "python": "3.12.0"},
        "method": {"image_size": 256, "ensemble": 4, "batch": 1, "crop_size": 224, "timestep": 200},
        "settings": {"rounds": 8, "images": 4}, "packages": {"torch": "2.14.1", "numpy": "2.4.6"},
        "flop": {"vae_encoder": 272_722_165_760, "unet_step": 720_425_779_200},
        "layout": {"vae": "channels_last"},
        "layout_s": {"vae": {"contiguous": [2.5, 2.47], "channels_last": [2.33]}}, "logit_standard_deviation": 0.25,
        "sessions": [{"started": {"time": "2026-11-24T10", "load_average": [0.1, 0.2, 0.3]},
                      "probes": {"start": {"numpy": 180.0, "torch": 185.4}, "end": {"numpy": 181.0, "torch": 184.0}}}],
        "rows": [measured_row("eager", "reference"), ours, missing],
    }  # fmt: skip


def sample_profile():
    """As of a machine with onnxruntime and openvino: what tells its blocks, and what tells components alone."""
    components = {"vae_encoder": [2.0, 2.1, 2.2], "unet_step": [4.0, 4.1, 4.2]}
    graphs = {"components": components, "blocks": {"conv_in": 0.01, "other": 0.02}, "named_share": 0.9,
              "operators": {"Conv": 0.02, "Add": 0.01}}  # fmt: skip
    flop = {"vae_encoder": 300_000_000_000, "unet_step": 700_000_000_000}
    return {
        "flop": flop, "peak_gflops": 185.4,
        "parts": {
            "eager": {"components": components, "blocks": {"conv_in": [0.02, 0.03, 0.04], "other": [0.1, 0.2, 0.3]}},
            "onnxruntime": {**graphs, "winograd_flop": {name: count // 2 for name, count in flop.items()}},
            "openvino": {"components": components},
        },
        "sizes": [
            {"engine": engine, "ensemble": draws, "batch": 1, "seconds": [draws * 1.0] * 3, "peak_bytes": 5e9}
            for draws in (4, 1) for engine in ("eager", "onnxruntime")
        ],
    }  # fmt: skip


def sample_fidelity():
    report = sample_report()
    shared = {name: report[name] for name in ("model", "images", "machine", "packages", "logit_standard_deviation")}
    faithful = {"fidelity": report["rows"][0]["fidelity"], "flips": None, "passed": True}
    failed = {**faithful, "flips": 3, "passed": False}
    engines = {"onnxruntime": faithful, "openvino": {"reason": "a|b"}, "winograd": failed}
    limits = {"latent": 3e-4, "noise_prediction": 3e-4, "lare": 1e-3, "logit": 1e-2}
    return {**shared, "limits": limits, "engines": engines}


README_TABLE = """\
| row | ms an image | against eager | of peak | peak memory | LaRE error | logit error |
| --- | --: | --: | --: | --: | --: | --: |
| `eager` | 9123 | 1.00 × | 59 % | 5.2 GB | 3.1e-6 | 1.2e-5 σ |
| **`winograd` †‡** | 5800 | 1.57 × | 93 % | 5.2 GB | 3.1e-6 | 1.2e-5 σ |
| **`openvino`** | — | — | — | — | — | — |

- † `winograd`: the machine was disturbed, only 6 of 8 rounds were steady
- ‡ `winograd`: the resting process used the CPU (reference 0.0 %, candidate 5.0 % of one core)
- `openvino`: not usable: openvino is not installed: pip install 'a\\|b'

synthetic-sd15, CPU X, 2 threads, 2026-11-24; torch 2.14.1; 256 pixels, 4 draws, batch 1, float32; \
8 rounds over 4 photographs; best matrix product 185 GFLOP/s. Error of LaRE: relative L2 of the worst image against \
the reference; of the logit: largest difference in units of its standard deviation over the images."""


class TestTables:
    def test_readme_table(self):
        assert render_throughput.readme_table(sample_report()) == README_TABLE

    def test_other_tables(self):
        report = sample_report()
        speed = render_throughput.speed_table(report)
        assert (
            "| `eager` | 9123 | 9200 | 9300 | 9124 | 1.00 (0.99 to 1.01) | 0.11 | 110 | 59 % | 8 + 0 strayed |" in speed
        )
        fidelity = render_throughput.fidelity_table(report)
        assert "| `eager` | 1.1e-6 | — | 3.1e-6 | 2.0e-5 | 4.0e-7 | 3.0e-6 | 1.2e-5 | yes |" in fidelity
        start = render_throughput.start_table(report)
        assert "| 120 s | 8.0 GB | 1.0 s | 2.0 s | 9.5 s | 5.2 GB | 4.9 GB |" in start
        conditions = render_throughput.conditions_table(report)
        assert "start: numpy 180, torch 185; end: numpy 181, torch 184" in conditions
        assert "993.1 GFLOP (vae_encoder 27 %, unet_step 73 %)" in conditions
        assert "channels_last (contiguous 2470 ms, channels_last 2330 ms)" in conditions
        components = render_throughput.components_table(report)
        assert "| row | `vae_encoder` | `unet_step` |" in components
        assert "| `eager` | 1640 (1.51 ×) | — |" in components
        assert "| **`openvino`** | — | — |" in components
        assert "No row of ours, or no peer" in render_claim.summary(report)
        slow, fast = (measured_row(name, "peer", speedup=ratio) for name, ratio in (("slow", 1.1), ("fast", 1.43)))
        summary_ = render_claim.summary({**report, "rows": [slow, *report["rows"], fast]})
        assert "| fastest row | `winograd`, 5800 ms an image |" in summary_
        assert "| against eager beside it | 1.57 × |" in summary_
        assert "| against the fastest peer | 1.10 × `fast` |" in summary_
        assert "| its VAE encoder against eager's | 1.51 × |" in summary_
        broken = measured_row("x", "peer")
        broken["fidelity"]["lare"]["worst_relative_l2"] = None
        assert "| broken |" in render_throughput.readme_table({**report, "rows": [broken]})

    def test_every_table_renders(self):
        """Those too that no page asks for yet, where a missing key would not be seen."""
        samples = (
            (render_throughput.THROUGHPUT | render_claim.CLAIM, sample_report()),
            (render_fidelity.FIDELITY, sample_fidelity()),
            (render_profile.PROFILE, sample_profile()),
        )
        for tables, report in samples:
            for name, render in tables.items():
                shown = render(report)
                begin = {"throughput-plot": "![", "throughput-summary": "*No row of ours", "claim": "**LaRE"}.get(
                    name, "| "
                )
                assert shown.startswith(begin), name
                for part in shown.split("\n\n"):
                    widths = {line.replace("\\|", "").count("|") for line in part.splitlines() if line[0] == "|"}
                    assert len(widths) <= 1, (name, part)

    def test_profile_tables(self):
        report = sample_profile()
        components, sizes, blocks = (
            render_profile.PROFILE[f"profile-{name}"] for name in ("components", "sizes", "blocks")
        )
        assert "| `unet_step` | 700.00 | 437.50 | 4100 ms | 4100 ms | 4100 ms |" in components(report)
        assert "625 GFLOP would take 3371 ms at the 185 GFLOP/s" in components(report)
        assert "| `conv_in` | 30.0 | 10.0 |" in blocks(report)
        assert "90 % of onnxruntime's time" in blocks(report)
        assert "| 1 | 1 | 1000 | 5.0 GB | 1000 | 5.0 GB |" in sizes(report)
        del report["parts"]["onnxruntime"], report["peak_gflops"], report["sizes"][1]
        assert "| `unet_step` | 700.00 | — | 4100 ms | 4100 ms |" in components(report)
        assert "floor" not in components(report)
        assert "| `conv_in` | 30.0 |" in blocks(report)
        assert "| 4 | 1 | 4000 | 5.0 GB | — | — |" in sizes(report)

    def test_fidelity_on_photographs(self):
        shown = render_fidelity.fidelity_table(sample_fidelity())
        assert "| `onnxruntime` | 1.1e-6 | — | 3.1e-6 | 4.0e-7 | 1.2e-5 | — | yes |" in shown
        assert "| `openvino` | — | — | — | — | — | — | a\\|b |" in shown
        assert "| `winograd` | 1.1e-6 | — | 3.1e-6 | 4.0e-7 | 1.2e-5 | 3 | **no** |" in shown

    def test_committed_pages_are_what_the_reports_say(self, capsys):
        assert render_tables.main(["--check"]) == 0, capsys.readouterr().out

    def test_pages_are_filled_and_checked(self, tmp_path, capsys):
        pytest.importorskip("matplotlib")
        (tmp_path / "benchmarks/results").mkdir(parents=True)
        (tmp_path / "docs").mkdir()
        page = tmp_path / "README.md"
        page.write_text("before\n<!-- table: throughput -->\nold\n<!-- end of table -->\nafter\n")
        arguments = ["--root", str(tmp_path)]
        assert render_tables.main(arguments) == 0
        assert "*Not measured yet: `python -m benchmarks.throughput --model-synthetic sd15`.*" in page.read_text()
        assert render_tables.main([*arguments, "--check"]) == 0
        result = tmp_path / "benchmarks/results/throughput-synthetic-sd15.json"
        result.write_text(json.dumps(sample_report()))
        capsys.readouterr()
        assert render_tables.main([*arguments, "--check"]) == 1
        shown = capsys.readouterr().out
        assert "README.md is out of date" in shown
        assert "docs/throughput.svg is out of date" in shown
        assert not (tmp_path / "docs/throughput.svg").exists()
        assert render_tables.main(arguments) == 0
        assert page.read_text() == (
            f"before\n<!-- table: throughput -->\n\n{README_TABLE}\n\n<!-- end of table -->\nafter\n"
        )
        ElementTree.parse(tmp_path / "docs/throughput.svg")
        plot = (tmp_path / "docs/throughput.svg").read_text()
        assert "winograd" in plot
        assert "openvino" not in plot  # it has no figures
        assert render_tables.main([*arguments, "--check"]) == 0
        moved = sample_report()
        moved["rows"][1]["speedup"] = 1.6
        result.write_text(json.dumps(moved))
        assert render_tables.main([*arguments, "--check"]) == 1

    def test_removed_engines_are_left_out(self, tmp_path):
        (tmp_path / "benchmarks/results").mkdir(parents=True)
        gone, report = measured_row("gone", "ours", speedup=9.0), sample_report()
        report = {**report, "rows": [*report["rows"], gone], "packages": {**report["packages"], "gone": "1"}}
        fidelity, profile = sample_fidelity(), sample_profile()
        fidelity["engines"]["gone"] = fidelity["engines"]["onnxruntime"]
        profile["parts"]["gone"] = profile["parts"]["openvino"]
        for kind, content in (("throughput", report), ("fidelity", fidelity), ("profile", profile)):
            (tmp_path / f"benchmarks/results/{kind}-synthetic-sd15.json").write_text(json.dumps(content))
        names = ("throughput-speed", "throughput-conditions", "fidelity-photographs", "profile-components")
        blocks = "".join(f"<!-- table: {name} -->\n<!-- end of table -->\n" for name in names)
        (tmp_path / "README.md").write_text(blocks)
        (tmp_path / "docs").mkdir()
        assert render_tables.main(["--root", str(tmp_path)]) == 0
        for path in ("README.md", "docs/throughput.svg"):
            text = (tmp_path / path).read_text()
            assert "gone" not in text
            assert "winograd" in text

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("<!-- table: nonsense -->\n<!-- end of table -->\n", "asks for a table 'nonsense'"),
            ("<!-- table: throughput -->\nand no end\n", "without '<!-- end of table -->'"),
        ],
    )
    def test_wrong_pages_are_named(self, tmp_path, text, words, capsys):
        (tmp_path / "README.md").write_text(text)
        assert render_tables.main(["--root", str(tmp_path)]) == 2
        assert words in capsys.readouterr().err
        with pytest.raises(UsageError):
            render_tables.changes(tmp_path)


def profile_report():
    times = {"vae_encoder": [1.0, 2.0, 3.0], "unet_step": [4.0, 4.0, 4.0]}
    blocks = {"down_blocks.0.resnets.0": 0.1, "down_blocks.0.attentions.0": 0.2}
    graph = {"components": times, "blocks": blocks, "operators": {"MatMul": 0.2, "Conv": 0.1}, "named_share": 0.98}
    layer = {"batch": 4, "inputs": 320, "outputs": 640, "height": 16, "width": 16}
    choices = [{"tile": tile, "strips": strips, "seconds": 0.01 * strips} for tile in (2, 4) for strips in (1, 2)]
    first = {
        "component": "unet_step",
        "layer": layer,
        "count": 3,
        "direct": 0.02,
        "choices": choices,
        "chosen": {"tile": 4, "strips": 1},
    }
    layers = [first, {**first, "choices": choices[:2], "chosen": None}]
    less = {**graph, "layers": layers, "operators": {"MatMul": 0.25}, "blocks": {"down_blocks.0.attentions.0": 0.2}}
    return {
        "flop": {"vae_encoder": 200_000_000_000, "unet_step": 800_000_000_000}, "peak_gflops": 100.0,
        "parts": {
            "eager": {"components": times, "blocks": {name: [1.0] for name in blocks}},
            "onnxruntime": {**graph, "winograd_flop": {"vae_encoder": 200_000_000_000, "unet_step": 400_000_000_000}},
            "openvino": {"components": times},
            "winograd": less,
        },
    }  # fmt: skip


class TestProfileTables:
    def test_components_and_the_floor(self):
        shown = render_profile.PROFILE["profile-components"](profile_report())
        assert "| component | GFLOP | with F(4×4) | eager | onnxruntime | openvino | winograd |" in shown
        assert "| `vae_encoder` | 200.00 | 50.00 | 2000 ms |" in shown
        assert "| all | 1000.00 | 550.00 | 6000 ms |" in shown
        assert "550 GFLOP would take 5500 ms at the 100 GFLOP/s" in shown

    def test_blocks_and_operators(self):
        shown = render_profile.PROFILE["profile-blocks"](profile_report())
        assert "| `down_blocks.0.resnets.0` | 1000 | 100 | — |" in shown
        assert "| `MatMul` | 200 | 67 % | 250 | 100 % |" in shown
        assert "| `Conv` | 100 | 33 % | — | 0 % |" in shown

    def test_layers(self):
        shown = render_profile.PROFILE["profile-layers"](profile_report())
        assert "| unet_step: 320 → 640 at 16×16 | 3 | 20.0 | 10.0 | 10.0 | F(4×4) |" in shown
        assert "| unet_step: 320 → 640 at 16×16 | 3 | 20.0 | 10.0 | — | direct |" in shown
