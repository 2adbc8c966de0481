"""The GPU chain without a GPU: executed on a fake runtime that enforces CUDA's and TensorRT's rules."""

import inspect
import re
from dataclasses import replace

import numpy as np
import pytest

from lare2_rt.bundle.manifest import COMPONENTS
from lare2_rt.bundle.noise import draw_noise
from lare2_rt.bundle.opening import open_bundle
from lare2_rt.engines.contract import EngineInfo, EngineOptions
from lare2_rt.engines.cuda_runtime import Buffer, Cuda
from lare2_rt.engines.difference import difference
from lare2_rt.engines.registry import engine_named
from lare2_rt.engines.selection import load_engine
from lare2_rt.engines.tensorrt import chain as module
from lare2_rt.engines.tensorrt.chain import TensorRtChain
from lare2_rt.errors import EngineError
from lare2_rt.pixels.preprocess import preprocess
from tests.fakes import tensorrt as fake_tensorrt
from tests.fakes.cuda import OUT_OF_MEMORY, CaptureMode, FakeCuda, RuleBroken
from tests.fakes.tensorrt import FakeTensorRt, plan_of

INFO = EngineInfo("tensorrt", "11.4", "cuda:0", "fp16", 1, 2, "0" * 64)


@pytest.fixture(scope="module")
def bundle(tiny):
    return open_bundle(tiny[1].path)


@pytest.fixture(scope="module")
def sessions():
    """ONNX Runtime sessions by graph, for the whole module."""
    return {}


@pytest.fixture
def opened(bundle, sessions):
    """Open chains on a fake runtime, and see afterwards that closing leaves nothing."""
    chains = []

    def opened(cuda=None, *, fail=(), cuda_graph=True, kind=TensorRtChain):
        cuda = cuda or FakeCuda()
        trt = FakeTensorRt(cuda, fail=fail)
        trt.sessions = sessions
        variants = {n: bundle.variant(n, batch=1, precision="fp16", profile="native") for n in COMPONENTS}
        plans = {name: plan_of(bundle, variant, name) for name, variant in variants.items()}
        chain = kind(trt, cuda, plans=plans, variants=variants, noise=bundle.noise, info=INFO, cuda_graph=cuda_graph)
        chains.append((chain, cuda))
        return chain, cuda, trt

    yield opened
    for chain, cuda in chains:
        chain.close()
        chain.close()
        assert cuda.live() == 0


@pytest.fixture(scope="module")
def pictures(photos, bundle):
    pixels = [preprocess(photo, bundle.manifest.policy) for photo in photos[:2]]
    return [(p.image[None], p.crop[None]) for p in pixels]


@pytest.fixture(scope="module")
def expected(bundle, pictures, sessions):
    """The same graphs chained by hand."""
    import onnxruntime

    def run(name, inputs):
        graph = str(bundle.graph_path(bundle.variant(name, batch=1, precision="fp16", profile="native")))
        if graph not in sessions:
            sessions[graph] = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        session = sessions[graph]
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, inputs), strict=True))

    def chain(image, crop, noise):
        latent = run("vae_encoder", {"image": image, "posterior_noise": noise.posterior})["latent"]
        found = run("unet_step", {"latent": latent, "noise": noise.ensemble}) | run("clip_backbone", {"crop": crop})
        return found | run("egre", {name: found[name] for name in ("lare", "embedding", "layer3")})

    return chain, [chain(image, crop, bundle.noise) for image, crop in pictures]


def same(output, wanted):
    for name in ("lare", "embedding", "logits", "attention"):
        np.testing.assert_array_equal(getattr(output, name), wanted[name], err_msg=name)


@pytest.mark.parametrize("cuda_graph", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_two_images_give_their_own_results(opened, pictures, expected, cuda_graph):
    """A graph that replayed the first input, or read what another stream had not finished, would fail here."""
    chain, cuda, _ = opened(cuda_graph=cuda_graph)
    for index in (0, 1, 0):
        same(chain.run(*pictures[index]), expected[1][index])
    assert difference(expected[1][0]["lare"], expected[1][1]["lare"]).relative_l2 > 1e-2
    assert cuda.counts["cudaGraphLaunch"] == (3 if cuda_graph else 0)


@pytest.mark.parametrize("cuda_graph", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_window_alone_gives_its_own_results_and_leaves_no_trace(opened, pictures, expected, cuda_graph):
    """CLIP and EGRE with the LaRE that a caller holds: neither the last picture's nor the last window's."""
    chain, _, _ = opened(cuda_graph=cuda_graph)
    lare = [chain.run(*pictures[index]).lare for index in (0, 1)]
    for index in (0, 1, 0):
        window = chain.run_window(lare[index], pictures[index][1])
        assert np.array_equal(window.logits, expected[1][index]["logits"])
        assert np.array_equal(window.attention, expected[1][index]["attention"])
    mixed = chain.run_window(lare[1], pictures[0][1])
    assert not np.array_equal(mixed.logits, expected[1][0]["logits"])
    same(chain.run(*pictures[1]), expected[1][1])
    with pytest.raises(EngineError, match="takes lare as float32"):
        chain.run_window(lare[0][:, :1], pictures[0][1])
    chain.close()
    with pytest.raises(EngineError, match="closed"):
        chain.run_window(lare[0], pictures[0][1])


def test_capture_follows_a_warm_up_and_replays_need_no_kernel_launch(opened, pictures):
    chain, cuda, trt = opened()
    captures = [captured for _, _, captured in trt.log]
    assert captures == [False] * 4 + [True] * 4
    assert [name for name, _, _ in trt.log[4:]] == ["clip_backbone", "vae_encoder", "unet_step", "egre"]
    streams = {name: stream for name, stream, _ in trt.log}
    assert streams["vae_encoder"] == streams["unet_step"] == streams["egre"] != streams["clip_backbone"]
    (captured,) = cuda.executables.values()
    assert captured.mode is CaptureMode.cudaStreamCaptureModeThreadLocal  # other threads may go on allocating
    before = len(cuda.calls)
    chain.run(*pictures[0])
    assert cuda.calls[before:] == ["cudaGraphLaunch", "cudaStreamSynchronize"]
    assert len(trt.log) == 8


def test_sequential_components_share_activation_memory(opened):
    chain, _, _ = opened()
    memory = {name: context.memory for name, context in chain._contexts._contexts.items()}
    assert memory["vae_encoder"] == memory["unet_step"] == memory["egre"] != memory["clip_backbone"]


def test_noise_can_be_given_per_call_and_leaves_no_trace(opened, pictures, expected, bundle):
    chain, _, _ = opened()
    method = bundle.manifest.method
    other = draw_noise(method.noise_seed + 1, method.ensemble, method.latent_shape)
    same(chain.run(*pictures[0], noise=other), expected[0](*pictures[0], other))
    same(chain.run(*pictures[0]), expected[1][0])


def test_results_are_the_callers_own(opened, pictures):
    chain, _, _ = opened()
    first = chain.run(*pictures[0])
    kept = first.lare.copy()
    chain.run(*pictures[1])
    np.testing.assert_array_equal(first.lare, kept)


def test_wrong_arrays_and_closed_chains_are_sentences(opened, pictures):
    chain, _, _ = opened()
    image, crop = pictures[0]
    for wrong in (image[:, :-1], np.concatenate([image, image]), image.astype(np.float32)):
        with pytest.raises(EngineError, match="takes image as uint8"):
            chain.run(wrong, crop)
    chain.close()
    with pytest.raises(EngineError, match="closed"):
        chain.run(image, crop)


def test_batches_have_one_graph_of_their_own_size(embedded, photos):
    """Four different pictures through the graph of four, in two orders, against ONNX Runtime on the same graphs."""
    bundle = open_bundle(embedded)
    variants = {name: bundle.variant(name, batch=4, precision="fp32", profile="portable") for name in COMPONENTS}
    cuda = FakeCuda()
    chain = TensorRtChain(
        FakeTensorRt(cuda),
        cuda,
        plans={name: plan_of(bundle, variant, name) for name, variant in variants.items()},
        variants=variants,
        noise=bundle.noise,
        info=replace(INFO, batch=4),
        cuda_graph=True,
    )
    plain = load_engine(engine_named("onnxruntime"), bundle, EngineOptions(threads=1, batch=4))
    pixels = [preprocess(photo, bundle.manifest.policy) for photo in photos[:4]]
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        image, crop = (np.stack([getattr(pixels[i], part) for i in order]) for part in ("image", "crop"))
        ours, theirs = chain.run(image, crop), plain.run(image, crop)
        for name in ("lare", "logits"):
            assert difference(getattr(ours, name), getattr(theirs, name)).relative_l2 < 1e-5, name
    assert (cuda.counts["cudaStreamBeginCapture"], cuda.counts["cudaGraphLaunch"]) == (1, 2)
    with pytest.raises(EngineError, match="takes image as uint8"):
        chain.run(image[:1], crop[:1])
    chain.close()
    plain.close()
    assert cuda.live() == 0


class TestPlantedMistakes:
    """Each mistake that a GPU would punish with garbage, put into the chain, is caught by the fake runtime."""

    def broken(self, opened, kind, **options):
        with pytest.raises((RuleBroken, EngineError)) as error:
            opened(kind=kind, **options)
        return str(error.value)

    def test_allocation_in_capture(self, opened):
        class Chain(TensorRtChain):
            def _enqueue(self):
                super()._enqueue()
                if self._cuda._binding.capture:
                    self._cuda.allocate((4,), np.dtype(np.uint8))

        assert "could not be captured" in self.broken(opened, Chain)

    def test_synchronisation_in_capture(self, opened):
        class Chain(TensorRtChain):
            def _enqueue(self):
                super()._enqueue()
                self._cuda.synchronise(self._main)

        assert "could not be captured" in self.broken(opened, Chain)

    def test_unjoined_stream(self, opened, monkeypatch):
        wait = Cuda.wait
        monkeypatch.setattr(
            Cuda, "wait", lambda self, event, stream: None if event == self.joined else wait(self, event, stream)
        )

        class Chain(TensorRtChain):
            def _enqueue(self):
                self._cuda.joined = self._joined
                super()._enqueue()

        assert "not ordered" in self.broken(opened, Chain)

    def test_unjoined_capture_is_refused_by_cuda(self, opened):
        class Chain(TensorRtChain):
            def _enqueue(self):
                super()._enqueue()
                self._cuda.signal(self._forked, self._main)
                self._cuda.wait(self._forked, self._side)
                self._cuda.upload(self._buffers["crop"], self._host["crop"], self._side)

            def run(self, *arguments, **options):
                raise AssertionError

        assert "could not be captured (cudaErrorFake904" in self.broken(opened, Chain)

    def test_capture_before_warm_up(self, opened, monkeypatch):
        capture = Cuda.capture

        class Chain(TensorRtChain):
            def _enqueue(self):
                if self._cuda._binding.capture:
                    super()._enqueue()

        monkeypatch.setattr(Cuda, "capture", capture)
        assert "captured before it has run" in self.broken(opened, Chain)

    def test_rebinding_after_capture(self, opened):
        chain, _, _ = opened()
        context = chain._contexts._contexts["egre"]
        with pytest.raises(RuleBroken, match="after it was captured"):
            context.set_tensor_address("lare", context.addresses["lare"])

    def test_default_stream(self, opened, monkeypatch):
        monkeypatch.setattr(Cuda, "stream", lambda self: 0)
        assert "default stream" in self.broken(opened, TensorRtChain)

    def test_blocking_stream(self, opened, monkeypatch):
        monkeypatch.setattr(FakeCuda, "cudaStreamNonBlocking", 0)
        monkeypatch.setattr(FakeCuda, "cudaStreamCreateWithFlags", lambda self, flags: flags or self.known(0))
        assert "default stream" in self.broken(opened, TensorRtChain)

    def test_unread_error_of_cuda(self, opened, monkeypatch):
        def call(self, name, *arguments):
            _, *values = getattr(self._binding, name)(*arguments)
            return values[0] if len(values) == 1 else None

        monkeypatch.setattr(Cuda, "call", call)
        assert "nobody read what cudaStreamCreateWithFlags answered" in self.broken(opened, TensorRtChain)

    def test_unread_refusal_of_tensorrt(self, opened, monkeypatch):
        def execute(self, name, stream):
            self._contexts[name].execute_async_v3(stream)

        monkeypatch.setattr(module._Contexts, "execute", execute)
        assert "nobody read what execute_async_v3 answered" in self.broken(opened, TensorRtChain)

    def test_freed_buffer(self, opened, pictures):
        chain, cuda, _ = opened()
        address = chain._buffers["latent"].address
        raw = cuda.device.pop(address)
        with pytest.raises(RuleBroken, match="no live device memory"):
            chain.run(*pictures[0])
        cuda.device[address] = raw

    def test_unaligned_address(self, opened):
        assert "not a multiple of 256" in self.broken(opened, TensorRtChain, cuda=FakeCuda(misalign=True))

    def test_unaligned_slice(self, opened, monkeypatch):
        allocate = module._allocate

        def sliced(cuda, variants):
            buffers = allocate(cuda, variants)
            one = buffers["logits"]
            return buffers | {"logits": Buffer(one.address + 8, one.shape, one.dtype)}

        monkeypatch.setattr(module, "_allocate", sliced)
        assert "refuses the memory of logits" in self.broken(opened, TensorRtChain)

    def test_parallel_branches_on_one_block(self, opened, monkeypatch):
        monkeypatch.setattr(module, "_IN_SEQUENCE", COMPONENTS)
        assert "not ordered after other work on the same memory" in self.broken(opened, TensorRtChain)

    def test_pageable_memory_in_a_graph(self, opened, monkeypatch):
        monkeypatch.setattr(Cuda, "pinned", lambda self, shape, dtype: np.zeros(shape, dtype))
        assert "not page-locked" in self.broken(opened, TensorRtChain)


CALLS = [
    "cudaMalloc",
    "cudaMallocHost",
    "cudaStreamCreateWithFlags",
    "cudaEventCreateWithFlags",
    "cudaMemcpyAsync",
    "cudaEventRecord",
    "cudaStreamWaitEvent",
    "cudaStreamSynchronize",
    "cudaStreamBeginCapture",
    "cudaStreamEndCapture",
    "cudaGraphInstantiate",
    "cudaGraphUpload",
]


@pytest.mark.parametrize("call", [CALLS[0], *(pytest.param(call, marks=pytest.mark.slow) for call in CALLS[1:])])
def test_no_error_code_goes_unread(opened, call):
    """Every call fails once, first and last of its kind; nothing stays allocated and the sentence names the call."""
    _, cuda, _ = opened()
    for when in (1, cuda.counts[call]):
        failing = FakeCuda(fail={call: (when, OUT_OF_MEMORY)})
        with pytest.raises(EngineError, match=rf"CUDA failed in {call} .*free some GPU memory"):
            opened(failing)
        assert failing.live() == 0, (call, when)


def test_a_failing_launch_is_told_and_the_next_call_works(opened, pictures, expected):
    cuda = FakeCuda(fail={"cudaGraphLaunch": (1, OUT_OF_MEMORY)})
    chain, _, _ = opened(cuda)
    with pytest.raises(EngineError, match="cudaGraphLaunch"):
        chain.run(*pictures[0])
    same(chain.run(*pictures[1]), expected[1][1])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ("Runtime", r"cannot start \(CUDA initialization failure with error: 35\); check the GPU and its driver"),
        ("deserialize_cuda_engine", "does not load the plan of vae_encoder: the plan was made for another GPU"),
        ("create_execution_context", "cannot prepare vae_encoder"),
        ("set_input_shape", "does not take image"),
        ("set_tensor_address", "refuses the memory of image"),
        ("infer_shapes", "lacks the shape of image"),
        ("execute_async_v3", "cannot run clip_backbone"),
    ],
)
def test_no_refusal_of_tensorrt_goes_unread(opened, call, sentence):
    cuda = FakeCuda()
    with pytest.raises(EngineError, match=sentence):
        opened(cuda, fail=[call])
    assert cuda.live() == 0


def test_a_plan_of_another_graph_is_refused(bundle, opened, monkeypatch):
    def other(*arguments):
        return fake_tensorrt.plan_of(*arguments).replace(b"[1, 2]", b"[1, 3]")

    monkeypatch.setitem(opened.__globals__, "plan_of", other)
    with pytest.raises(EngineError, match="the plan of egre is of another graph"):
        opened()


def test_documented_arguments_exist():
    documented = inspect.getdoc(TensorRtChain).partition("Args:\n")[2].partition("\n\n")[0]
    names = re.findall(r"(?:^ +|; )(\w+):", documented, re.MULTILINE)
    taken = {*inspect.signature(TensorRtChain).parameters}
    assert {"trt", "binding", "plans", "cuda_graph"} <= {*names} <= taken


def test_the_real_binding_has_every_call_with_as_many_arguments():
    """Signatures of cuda-bindings, read from its own docstrings."""
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings")
    arguments = {
        **dict.fromkeys(("cudaGetDeviceCount", "cudaDriverGetVersion", "cudaRuntimeGetVersion"), 0),
        **dict.fromkeys(("cudaMalloc", "cudaFree", "cudaMallocHost", "cudaFreeHost", "cudaGetDeviceProperties"), 1),
        **dict.fromkeys(("cudaStreamCreateWithFlags", "cudaStreamDestroy", "cudaStreamSynchronize"), 1),
        **dict.fromkeys(("cudaEventCreateWithFlags", "cudaEventDestroy", "cudaStreamEndCapture"), 1),
        **dict.fromkeys(("cudaGraphDestroy", "cudaGraphExecDestroy"), 1),
        **dict.fromkeys(("cudaEventRecord", "cudaStreamBeginCapture", "cudaGraphInstantiate"), 2),
        **dict.fromkeys(("cudaGraphUpload", "cudaGraphLaunch"), 2),
        "cudaStreamWaitEvent": 3,
        "cudaMemcpyAsync": 5,
    }
    for name, count in arguments.items():
        first = getattr(runtime, name).__doc__.strip().splitlines()[0]
        inside = first[first.index("(") + 1 : first.rindex(")")]
        assert len([part for part in inside.split(",") if part.strip()]) == count, first
        if hasattr(FakeCuda, name):
            taken = list(inspect.signature(getattr(FakeCuda, name)).parameters)
            assert len(taken) - 1 == count, (name, taken)
    assert runtime.cudaStreamNonBlocking == FakeCuda.cudaStreamNonBlocking
    assert runtime.cudaEventDisableTiming == FakeCuda.cudaEventDisableTiming
    assert int(runtime.cudaMemcpyKind.cudaMemcpyHostToDevice) == 1
    assert int(runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal) == 1
