"""The benchmark that holds engines against eager on photographs."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import fidelity
from benchmarks.render.fidelity import FIDELITY
from lare2_rt.detection import DecisionRule


class TestFidelity:
    def entry(self, **changes):
        arrays = {name: {"worst_relative_l2": 1e-6, "max_abs": 1.0, "not_finite": 0} for name in fidelity.LIMITS}
        logit = {"max_difference": 1e-4, "over_standard_deviation": 1e-3, "standard_deviation": 0.1}
        return {**arrays, "embedding": {"worst_relative_l2": 1e-7}, "logit": logit, **changes}

    def test_verdicts_are_counted_by_the_bundles_rule(self):
        """Logits just on either side of a threshold; without thresholds there is nothing to count."""
        rule = DecisionRule("calibrated", real_below=0.3, generated_from=0.7, temperature=2.0, bias=0.1)

        def images(*gaps):
            return [{"logits": np.array([[0.0, gap]], np.float32)} for gap in gaps]

        edge = 2 * (math.log(0.7 / 0.3) - 0.1)
        truth = images(-9.0, 0.0, edge + 1e-4, 9.0)
        assert fidelity.flipped(truth, truth, rule) == 0
        assert fidelity.flipped(images(-9.0, 0.0, edge - 1e-4, 9.0), truth, rule) == 1
        assert fidelity.flipped(images(9.0, 9.0, edge + 1e-4, 0.0), truth, rule) == 3
        assert fidelity.flipped(truth, truth, DecisionRule("uncalibrated")) is None

    def test_every_limit_counts(self):
        assert fidelity.passes(self.entry())
        for name, limit in fidelity.LIMITS.items():
            assert not fidelity.passes(self.entry(**{name: {"worst_relative_l2": 1.01 * limit}}))
            assert not fidelity.passes(self.entry(**{name: {"worst_relative_l2": None}}))
            assert not fidelity.passes(self.entry(**{name: None}))
        logit = self.entry()["logit"]
        assert not fidelity.passes(self.entry(logit={**logit, "over_standard_deviation": 0.011}))
        assert not fidelity.passes(self.entry(logit={**logit, "standard_deviation": 0.009}))  # void, not passed

    def test_table(self):
        report = {
            "model": "synthetic-sd15", "images": ["a"] * 32, "limits": {**fidelity.LIMITS, "logit": 1e-2},
            "machine": {"cpu": "CPU X", "threads": 2}, "logit_standard_deviation": 0.14,
            "packages": {"onnxruntime": "1.32.0", "openvino": "2026.4.1"},
            "engines": {
                "winograd": {"fidelity": self.entry(), "passed": True},
                "onnxruntime": {"fidelity": self.entry(latent={"worst_relative_l2": 4e-4}), "passed": False},
                "openvino": {"reason": "openvino is not installed"},
            },
        }  # fmt: skip
        shown = FIDELITY["fidelity-photographs"](report)
        assert "| allowed | 3.0e-4 | 3.0e-4 | 1.0e-3 | — | 1.0e-2 | 0 |  |" in shown
        assert "| `winograd` | 1.0e-6 | 1.0e-6 | 1.0e-6 | 1.0e-7 | 1.0e-3 | — | yes |" in shown
        assert "| `onnxruntime` | 4.0e-4 | 1.0e-6 | 1.0e-6 | 1.0e-7 | 1.0e-3 | — | **no** |" in shown
        assert "| `openvino` | — | — | — | — | — | — | openvino is not installed |" in shown
        assert "32 pictures" in shown

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--images", "nowhere"], "with --images"),
            (["--images", ".", "--engines", "tensorrt,fast"], "there is no engine 'fast'"),
            (["--images", ".", "--limit", "1"], "set --limit to at least 2"),
        ],
    )
    def test_wrong_options_are_one_sentence(self, arguments, words, capsys, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        assert fidelity.main(arguments) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1


@pytest.mark.slow
def test_fidelity_end_to_end(photos, tmp_path):
    out = tmp_path / "fidelity.json"
    command = [sys.executable, "-m", "benchmarks.fidelity", "--images", photos[-1].parent, "--limit", "2"]
    command += ["--engines", "onnxruntime,winograd", "--work", tmp_path, "--out", out]
    run = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert run.returncode in (0, 1), run.stderr
    report = json.loads(out.read_text())
    assert len(report["images"]) == 2
    for name in ("onnxruntime", "winograd"):
        entry = report["engines"][name]["fidelity"]
        for array in ("latent", "noise_prediction", "lare", "embedding"):
            assert 0 < entry[array]["worst_relative_l2"] < 3e-5, (name, array)
