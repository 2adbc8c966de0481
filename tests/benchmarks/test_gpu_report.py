"""The proof kit, as far as it goes without a GPU: it judges rightly, and says in a sentence what it could not prove."""

import dataclasses
import json
import sys

import numpy as np
import pytest

from benchmarks import gpu_reference
from benchmarks.gpu_report import __main__ as gpu_report, measure as measuring, worker as gpu_report_worker
from benchmarks.gpu_report.cases import EAGER, ROWS, cases_of, expected_answers
from benchmarks.gpu_report.store import table
from lare2_rt.bundle.manifest import COMPONENTS
from lare2_rt.bundle.opening import open_bundle
from lare2_rt.detection import DecisionRule
from lare2_rt.engines.contract import ChainOutput, EngineInfo, EngineOptions
from lare2_rt.engines.registry import engine_named, entry_of
from lare2_rt.engines.selection import load_engine
from lare2_rt.engines.tensorrt.chain import TensorRtChain
from lare2_rt.errors import BundleError
from lare2_rt.pixels.preprocess import preprocess
from lare2_rt.pixels.procedural import procedural_pictures
from tests.fakes.cuda import FakeCuda
from tests.fakes.tensorrt import FakeTensorRt, plan_of

GPU = {"name": "Imaginary 9000", "capability": "8.9", "driver": 13000}
RULE = DecisionRule("uncalibrated")


@pytest.fixture(scope="module")
def bundle(tiny):
    return open_bundle(tiny[1].path)


@pytest.fixture(scope="module")
def pictures(bundle):
    return [preprocess(picture, bundle.manifest.policy) for picture in procedural_pictures()]


@pytest.fixture(scope="module")
def expected(bundle):
    return expected_answers(bundle, None)[0]


class FakeRunner:
    """Answers what the reference did, by the mean of the picture, unless told to make a mistake."""

    def __init__(self, pictures, expected, *, replay=False, scale=1.0, nan=False, by_row=0.0):
        self.expected, self.means = expected, [float(p.image.mean()) for p in pictures]
        self.replay, self.scale, self.nan, self.by_row = replay, scale, nan, by_row
        self.old, self.calls, self.facts = None, 0, {}

    def run(self, image, crop):
        self.calls += 1
        found = [int(np.argmin([abs(mean - one.mean()) for mean in self.means])) for one in image]
        if self.replay:
            found = self.old = self.old or found
        lare = np.stack([self.expected["lare"][i] for i in found]) * np.float32(self.scale)
        lare = lare + self.by_row * np.arange(len(found), dtype=np.float32).reshape(-1, 1, 1, 1)
        if self.nan:
            lare[0, 0, 0, 0] = np.nan
        logits = np.stack([self.expected["logits"][i] for i in found])
        return ChainOutput(lare, np.zeros((len(found), 8), np.float32), logits, np.zeros((len(found), 8, 196)))

    def peak_memory(self):
        return None

    def close(self):
        pass


class TestJudging:
    @pytest.mark.parametrize("batch", [1, 4, 8])
    def test_what_is_right_passes(self, pictures, expected, batch):
        runner = FakeRunner(pictures, expected)
        arguments = {"batch": batch, "precision": "fp16", "rule": RULE}
        parity = measuring.measure_parity(runner, pictures, expected, **arguments)
        assert parity["passed"]
        assert parity["relative_l2"] == {"lare": 0.0, "logits": 0.0}
        replay = measuring.measure_replay(runner, pictures, expected, batch=batch)
        assert replay["passed"]
        assert replay["same_bits_again"]
        rows = measuring.measure_rows(runner, pictures, batch=batch)
        assert rows == (None if batch == 1 else {"equal": True, "relative_l2": 0.0})

    def test_a_graph_that_replays_its_old_input_fails(self, pictures, expected):
        replay = measuring.measure_replay(FakeRunner(pictures, expected, replay=True), pictures, expected, batch=1)
        assert not replay["passed"]
        assert replay["apart"] == 0.0
        assert not replay["own_answers"]

    @pytest.mark.parametrize("mistake", [{"scale": 1.02}, {"nan": True}])
    def test_wrong_numbers_fail(self, pictures, expected, mistake):
        runner = FakeRunner(pictures, expected, **mistake)
        parity = measuring.measure_parity(runner, pictures, expected, batch=4, precision="fp16", rule=RULE)
        assert not parity["passed"]
        assert (parity["not_finite"] > 0) == ("nan" in mistake)
        json.dumps(parity, allow_nan=False)

    def test_what_half_precision_may_do_single_may_not(self, pictures, expected):
        runner = FakeRunner(pictures, expected, scale=1.005)
        verdicts = [
            measuring.measure_parity(runner, pictures, expected, batch=1, precision=precision, rule=RULE)["passed"]
            for precision in ("fp16", "fp32")
        ]
        assert verdicts == [True, False]

    def test_rows_that_differ_are_told_and_decide_nothing(self, pictures, expected):
        runner = FakeRunner(pictures, expected, by_row=1e-4)
        rows = measuring.measure_rows(runner, pictures, batch=4)
        assert not rows["equal"]
        assert 0 < rows["relative_l2"] < 1e-2

    def test_times(self, pictures, expected):
        runner, now = FakeRunner(pictures, expected), iter(range(10_000))
        clock = lambda: next(now) * 0.002  # noqa: E731 - two milliseconds from one look at the clock to the next
        speed = measuring.measure_time(runner, pictures, batch=4, seconds=0.2, clock=clock)
        assert speed["call_ms"]["p50"] == pytest.approx(2.0)
        assert speed["image_ms"] == pytest.approx(0.5)
        assert speed["images_per_second"] == pytest.approx(2000)
        assert runner.calls == speed["calls"] + measuring.WARM_UP
        assert 10 <= speed["calls"] < 40


class TestThroughTheRealChain:
    """The TensorRT chain on the fake runtime, judged as it will be on a GPU."""

    @pytest.fixture
    def chain(self, bundle):
        def chain(kind=TensorRtChain):
            cuda = FakeCuda()
            variants = {n: bundle.variant(n, batch=1, precision="fp16", profile="native") for n in COMPONENTS}
            plans = {name: plan_of(bundle, variant, name) for name, variant in variants.items()}
            info = EngineInfo("tensorrt", "11.4", "cuda:0", "fp16", 1, 2, "0" * 64)
            trt = FakeTensorRt(cuda)
            return kind(trt, cuda, plans=plans, variants=variants, noise=bundle.noise, info=info, cuda_graph=True)

        return chain

    def test_it_passes(self, chain, pictures, expected):
        opened = chain()
        assert measuring.measure_replay(opened, pictures[:2], expected, batch=1)["passed"]
        opened.close()

    def test_one_whose_upload_is_not_in_the_graph_does_not(self, chain, pictures, expected):
        """Planted: the image reaches the device only when the chain warms up, so every launch sees the first one."""

        class Chain(TensorRtChain):
            def _stage(self, name, array):
                if name != "image" or not getattr(self, "once", False):
                    super()._stage(name, array)
                    self.once = name == "image" or getattr(self, "once", False)

        opened = chain(Chain)
        replay = measuring.measure_replay(opened, pictures[:2], expected, batch=1)
        assert not replay["passed"]
        assert replay["apart"] < measuring.DISTINCT
        opened.close()


class TestAnswers:
    def test_recorded_answers_are_of_seeded_weights(self):
        """Small files: what they hold is checked where a bundle of that model is built."""
        for name, packages in (("seeded-mini", 4), ("synthetic-sd15", 4)):
            found = gpu_reference.load(gpu_reference.FOLDER / f"{name}.npz")
            assert found.facts["model"] == name
            assert len(found.facts["packages"]) == packages
            assert found.arrays["lare"].shape == (4, 4, 32, 32)
            assert found.arrays["logits"].shape == (4, 2)
            assert all(np.isfinite(array).all() for array in found.arrays.values())
            first, second = found.arrays["lare"][:2]
            assert np.linalg.norm(first - second) > measuring.DISTINCT * np.linalg.norm(first)

    def test_recorded_for_another_model_do_not_count(self, bundle, tmp_path):
        path = gpu_reference.FOLDER / "seeded-mini.npz"
        answers, source = expected_answers(bundle, path)
        assert set(answers) == {"lare", "logits"}
        assert "computed by PyTorch when the bundle was built here: the reference gives something else" in source
        own = gpu_reference.load(path)
        shape = own.arrays["lare"].shape
        facts = {**own.facts, "method": {n: getattr(bundle.manifest.method, n) for n in gpu_reference.METHOD}}
        arrays = {**own.arrays, "lare": bundle.selfcheck[:, 2:].reshape(shape), "logits": bundle.selfcheck[:, :2]}
        gpu_reference.save(tmp_path / "own.npz", gpu_reference.Reference(facts, arrays))
        answers, source = expected_answers(bundle, tmp_path / "own.npz")
        assert source == "recorded in own.npz"
        assert set(answers) == set(gpu_reference.OUTPUTS)
        facts["method"]["timestep"] += 1
        found = gpu_reference.Reference(facts, arrays)
        assert "another method" in found.why_not(bundle)
        assert "no answers" in gpu_reference.Reference(own.facts, own.arrays).why_not(
            dataclasses.replace(bundle, selfcheck=None)
        )
        with pytest.raises(BundleError, match="no answers of the reference"):
            expected_answers(dataclasses.replace(bundle, selfcheck=None), None)

    @pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04junk"])
    def test_damaged_files_are_a_sentence(self, tmp_path, content):
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(BundleError, match=r"holds no recorded answers .*benchmarks\.gpu_reference"):
            gpu_reference.load(tmp_path / "a.npz")

    def test_seeded_mini_can_be_made_again(self, tmp_path):
        """The recorded answers are those of today's code: one picture, from the seed on."""
        import torch

        from lare2_ref.sources import load_reference
        from lare2_rt.bundle.noise import draw_noise

        found = gpu_reference.load(gpu_reference.FOLDER / "seeded-mini.npz")
        sources, method = gpu_reference.model_sources("seeded-mini", tmp_path), found.facts["method"]
        reference = load_reference(
            sources,
            noise=draw_noise(method["noise_seed"], method["ensemble"], (4, 32, 32)),
            prompt=method["prompt"],
            timestep=method["timestep"],
            policy=None,
            image_size=method["image_size"],
        )
        pixels = reference.pixels(procedural_pictures()[1])
        output = reference(*(torch.from_numpy(part.copy())[None] for part in (pixels.image, pixels.crop)))
        gap = np.linalg.norm(output.lare.lare[0].numpy() - found.arrays["lare"][1])
        assert gap < 1e-4 * np.linalg.norm(found.arrays["lare"][1])


def case(row, batch=1, **changes):
    """A case as it stands in a report."""
    kind = next(one for one in ROWS if one.name == row)
    return {
        "row": row, "device": kind.device, "precision": kind.precision, "graph": kind.graph, "batch": batch,
        "status": "measured", "passed": True, "parity": {"relative_l2": {"lare": 2e-3}, "probability": 1e-4,
        "passed": True}, "two_images": {"passed": True}, "rows": None if batch == 1 else {"equal": False,
        "relative_l2": 1e-4}, "speed": {"call_ms": {"p50": 8.0 * batch, "p99": 9.0 * batch}, "image_ms": 8.0,
        "images_per_second": 125.0}, "gpu_peak_bytes": None, **changes,
    }  # fmt: skip


OPINION = {"status": "measured", "passed": True, "polygraphy": "0.53.6", "ran_on": "TensorRT", "components": {}}


class TestConclusions:
    @pytest.mark.parametrize(
        ("cases", "opinion", "no_gpu", "code", "sentence"),
        [
            ([case("TensorRT, graph")], OPINION, None, 0, "Proven: 1 cases on this GPU are faithful, two images"),
            ([case("TensorRT")], OPINION, None, 0, "but no captured graph was among them"),
            (
                [case("TensorRT, graph"), case("ONNX Runtime CUDA", status="not usable", reason="no; install")],
                OPINION,
                None,
                0,
                "1 more could not run here",
            ),
            ([case("TensorRT, graph", 4, passed=False)], OPINION, None, 1, "TensorRT, graph at batch 4 failed"),
            ([case("TensorRT, graph", status="failed", reason="x")], OPINION, None, 1, "at batch 1 failed"),
            ([case("TensorRT, graph")], {**OPINION, "passed": False}, None, 1, "Polygraphy at batch 1 failed"),
            ([case("TensorRT", status="not usable", reason="no")], OPINION, None, 2, "none of 1 cases for GPUs"),
            ([case("CPU: ONNX Runtime fp32")], OPINION, "no GPU", 2, "about GPUs: no GPU. The CPU rows passed."),
            (
                [case("CPU: ONNX Runtime fp32", status="not usable", reason="no")],
                OPINION,
                "no GPU",
                2,
                "Nothing is proven about GPUs: no GPU. No CPU row ran.",
            ),
            ([case("TensorRT", status="not usable", reason="no")], OPINION, "no GPU", 2, "No CPU row ran."),
            ([case("CPU: ONNX Runtime fp32")], OPINION, None, 2, "Nothing is proven: no row for GPUs was asked for"),
            ([case("CPU: ONNX Runtime fp32", passed=False)], OPINION, "no GPU", 1, "failed"),
        ],
    )
    def test_sentence_and_code(self, cases, opinion, no_gpu, code, sentence):
        found = gpu_report.conclude({"cases": cases, "polygraphy": opinion}, no_gpu)
        assert found["exit_code"] == code
        assert sentence in found["sentence"]

    def test_table(self):
        fast = case("TensorRT, graph", speed={**case("TensorRT")["speed"], "image_ms": 4.0})
        lines = table([case(EAGER), fast, case("TensorRT, graph", 4), case("TensorRT", status="failed", reason="x")])
        assert len(lines) == 5
        cells = [cell.strip() for cell in lines[3].split("|")]
        assert cells[1:4] == ["TensorRT, graph", "1", "fp16"]
        assert "2.00" in cells  # times faster than eager at the same batch
        assert "no (1.0e-4)" in lines[4]
        assert table([]) == ["Nothing was measured."]


def test_polygraphy_without_tensorrt_cannot_run(bundle, monkeypatch):
    """It imports TensorRT late and fails in its own way; that TensorRT is not installed proves nothing against it."""
    pytest.importorskip("polygraphy", reason="needs polygraphy")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    row = gpu_report.Row(gpu_report.POLYGRAPHY, "", "cuda", "fp16", "")
    common = {"bundle": str(bundle.path), "model": None, "work": "", "reference": None, "threads": 1, "seconds": 0.1}
    opinion = gpu_report_worker.run(cases_of([row], (1,), **common)[0])
    assert opinion["status"] == "not usable"
    assert opinion["reason"].startswith("TensorRT cannot be imported (")
    assert opinion["reason"].endswith(f"; {entry_of('tensorrt').install}")
    assert opinion["status"] not in ("failed", "measured")


def test_torch_rows_compute_what_the_engines_do(tiny, pictures, expected, monkeypatch, bundle):
    """The PyTorch baseline of the report, in both precisions, on the CPU."""
    from benchmarks.gpu_report import eager as gpu_report_torch

    monkeypatch.setattr(gpu_report_torch, "sources_of", lambda case: tiny[0])
    common = {"bundle": "", "model": None, "work": "", "reference": None, "threads": 1, "seconds": 0.1}
    eager = next(row for row in ROWS if row.name == "CPU: PyTorch eager fp32")
    one = cases_of([eager], (1,), **common)[0]
    runner = gpu_report_torch.open_torch(bundle, one)
    output = runner.run(pictures[1].image[None], pictures[1].crop[None])
    gap = np.linalg.norm(output.lare[0] - expected["lare"][1]) / np.linalg.norm(expected["lare"][1])
    assert gap < 1e-4
    np.testing.assert_allclose(output.logits[0], expected["logits"][1], atol=1e-4)
    both = runner.run(*measuring.batch_of(pictures, [0, 1]))
    np.testing.assert_allclose(both.lare[1], output.lare[0], rtol=1e-3, atol=1e-4)
    plain = load_engine(engine_named("onnxruntime"), bundle, EngineOptions(threads=1, batch=1))
    theirs = plain.run(pictures[1].image[None], pictures[1].crop[None])
    np.testing.assert_allclose(output.attention, theirs.attention, atol=1e-4)
    np.testing.assert_allclose(output.embedding, theirs.embedding, rtol=1e-3, atol=1e-3)
    plain.close()
