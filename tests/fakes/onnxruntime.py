"""ONNX Runtime's GPU providers without a GPU: sessions that compute on the CPU and keep the rules of CUDA graphs.

From its third run on, a session with CUDA graphs replays what it captured: with the buffers of that time, whatever is
bound by then. So a chain that binds anew, or runs without binding, would give old results here as it would on a GPU.
"""

from types import SimpleNamespace

import numpy as np
import onnxruntime

RUNS_BEFORE_CAPTURE = 2
FOLDER = "session.model_external_initializers_file_folder_path"
NO_CPU = "session.disable_cpu_ep_fallback"


class RuleBroken(AssertionError):
    """What a GPU would answer with old results, or with an error that nobody reads."""


class OrtValue:
    def __init__(self, value, device):
        self.value, self.device = value, device

    def update_inplace(self, array):
        assert array.flags.c_contiguous
        assert (array.dtype, list(array.shape)) == (self.value.numpy().dtype, self.value.shape())
        self.value.update_inplace(array)

    def numpy(self):
        return self.value.numpy().copy()


class Binding:
    def __init__(self, session):
        self.session, self.inputs, self.outputs = session, {}, {}

    def bind_ortvalue_input(self, name, value):
        self.inputs[name] = value

    def bind_ortvalue_output(self, name, value):
        self.outputs[name] = value


class RunOptions:
    def __init__(self):
        self.entries = {}

    def add_run_config_entry(self, key, value):
        assert isinstance(value, str)
        self.entries[key] = value


class Session:
    def __init__(self, ort, graph, settings, providers):
        self.ort, self.providers = ort, providers
        for _, options in providers:
            assert all(isinstance(value, str) for value in options.values()), "ONNX Runtime takes text only"
        own = onnxruntime.SessionOptions()
        if isinstance(graph, bytes):
            own.add_session_config_entry(FOLDER, settings.get_session_config_entry(FOLDER))
        self.real = onnxruntime.InferenceSession(graph, own, providers=["CPUExecutionProvider"])
        first, options = providers[0]
        self.names = [name for name, _ in providers] + ["CPUExecutionProvider"]
        if "fallback" in ort.fail:
            self.names = ["CPUExecutionProvider"]
        if "no library" in ort.fail:
            if settings.get_session_config_entry(NO_CPU) == "1":
                raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : fallback to CPU EP has been explicitly disabled")
            self.names = ["CPUExecutionProvider"]
        graphs = {"CUDAExecutionProvider": "enable_cuda_graph", "TensorrtExecutionProvider": "trt_cuda_graph_enable"}
        self.replays = options.get(graphs[first]) == "1"
        self.runs, self.captured = 0, {}
        ort.sessions.append(self)

    def get_providers(self):
        return self.names

    def get_inputs(self):
        return self.real.get_inputs()

    def get_outputs(self):
        return self.real.get_outputs()

    def io_binding(self):
        return Binding(self)

    def run(self, *arguments):
        raise RuleBroken("run without IO binding: addresses change from call to call")

    def run_with_iobinding(self, binding, options):
        if "run" in self.ort.fail:
            raise RuntimeError("CUDA error 2: out of memory\nmore words")
        assert binding.session is self
        self.runs += 1
        bound = binding.inputs, binding.outputs
        number = options.entries["gpu_graph_id"]
        if self.replays and number != "-1":
            if number == "0":
                raise RuleBroken("graph 0 is ONNX Runtime's own")
            if self.runs >= RUNS_BEFORE_CAPTURE:
                bound = self.captured.setdefault(number, ({**bound[0]}, {**bound[1]}))
        inputs, outputs = bound
        results = self.real.run(list(outputs), {name: value.numpy() for name, value in inputs.items()})
        for value, result in zip(outputs.values(), results, strict=True):
            value.value.update_inplace(np.ascontiguousarray(result))


class FakeOnnxRuntime:
    """Stands in for the module ``onnxruntime``. ``fail``: memory, fallback, no library, run."""

    RunOptions = RunOptions

    def __init__(self, *, fail=()):
        self.fail, self.sessions, self.allocated, self.preloaded = set(fail), [], [], 0
        self.OrtValue = SimpleNamespace(ortvalue_from_shape_and_type=self.allocate)

    def preload_dlls(self):
        self.preloaded += 1
        print("Failed to load libcudart.so.13")

    def allocate(self, shape, element_type, device, device_id):
        if "memory" in self.fail:
            raise RuntimeError("CUDA Provider not available")
        value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, element_type, "cpu", 0)
        self.allocated.append((device, device_id))
        return OrtValue(value, device)

    def InferenceSession(self, graph, settings, *, providers):
        return Session(self, graph, settings, providers)
