"""TensorRT's runtime over a fake CUDA: plans that compute with ONNX Runtime, and contexts that keep the real rules."""

import ctypes
import json
from enum import Enum
from types import SimpleNamespace

import numpy as np
import onnxruntime

from tests.fakes.cuda import Answer, Operation, RuleBroken

ACTIVATION_BYTES = {"vae_encoder": 5000, "unet_step": 70000, "clip_backbone": 3000, "egre": 100}


class DataType(Enum):
    FLOAT, HALF, UINT8 = range(3)


class TensorIOMode(Enum):
    INPUT, OUTPUT = range(2)


class Strategy(Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class ILogger:
    Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0, WARNING=2)

    def __init__(self):
        self.ready = True


def plan_of(bundle, variant, component):
    """What stands for a serialized plan."""
    specs = {
        spec.name: [mode, spec.dtype, list(spec.shape)]
        for mode, specs in (("INPUT", variant.inputs), ("OUTPUT", variant.outputs))
        for spec in specs
    }
    return json.dumps({"graph": str(bundle.graph_path(variant)), "tensors": specs, "component": component}).encode()


class FakeTensorRt:
    """Stands in for the module ``tensorrt``. ``fail`` names calls that give None or False."""

    DataType, TensorIOMode, ILogger = DataType, TensorIOMode, ILogger
    ExecutionContextAllocationStrategy = Strategy

    def __init__(self, cuda, *, fail=()):
        self.cuda, self.fail = cuda, set(fail)
        self.log, self.alive, self.sessions = [], [], {}

    def Runtime(self, logger):
        if not getattr(logger, "ready", False):
            raise TypeError("the logger's base class was not initialised")
        if "Runtime" in self.fail:
            logger.log(ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return Runtime(self, logger)


class Runtime:
    def __init__(self, trt, logger):
        self.trt, self.logger = trt, logger

    def deserialize_cuda_engine(self, plan):
        if "deserialize_cuda_engine" in self.trt.fail:
            self.logger.log(ILogger.Severity.ERROR, "the plan was made for another GPU")
            return None
        return Engine(self.trt, json.loads(plan), self.logger)


class Engine:
    def __init__(self, trt, plan, logger):
        self.trt, self.plan, self.logger = trt, plan, logger
        self.names = list(plan["tensors"])
        self.num_io_tensors = len(self.names)
        self.device_memory_size_v2 = ACTIVATION_BYTES[plan["component"]]

    def get_tensor_name(self, index):
        return self.names[index]

    def get_tensor_mode(self, name):
        return TensorIOMode[self.plan["tensors"][name][0]]

    def get_tensor_dtype(self, name):
        return {"float32": DataType.FLOAT, "uint8": DataType.UINT8}[self.plan["tensors"][name][1]]

    def get_tensor_shape(self, name):
        return tuple(self.plan["tensors"][name][2])

    def create_execution_context(self, strategy):
        assert strategy is Strategy.USER_MANAGED
        return None if "create_execution_context" in self.trt.fail else Context(self)


class Context:
    def __init__(self, engine):
        self.engine, self.trt = engine, engine.trt
        self.addresses, self.shapes = {}, {}
        self.memory = None
        self.warm = self.captured = False

    def set_device_memory(self, address, size):
        assert address % 256 == 0
        assert size >= self.engine.device_memory_size_v2
        self.trt.cuda.check_address(address, size, device=True)
        self.memory = address

    def set_input_shape(self, name, shape):
        self.changed()
        self.shapes[name] = tuple(shape)
        fits = self.shapes[name] == self.engine.get_tensor_shape(name)
        return self.answer("set_input_shape", fits)

    def set_tensor_address(self, name, address):
        self.changed()
        self.addresses[name] = address
        return self.answer("set_tensor_address", address % 256 == 0)

    def infer_shapes(self):
        names = self.engine.names
        inputs = [name for name in names if self.engine.get_tensor_mode(name) is TensorIOMode.INPUT]
        return ["image"] if "infer_shapes" in self.trt.fail else [name for name in inputs if name not in self.shapes]

    def answer(self, name, value):
        return self.trt.cuda.answered(name, Answer(value and name not in self.trt.fail))

    def changed(self):
        self.trt.cuda.check_read()
        if self.captured:
            raise RuleBroken("a context is changed after it was captured")
        self.warm = False

    def execute_async_v3(self, stream):
        cuda, component = self.trt.cuda, self.engine.plan["component"]
        cuda.check_read()
        if "execute_async_v3" in self.trt.fail:
            return self.answer("execute_async_v3", False)
        if self.memory is None or set(self.addresses) != set(self.engine.names):
            raise RuleBroken(f"{component} runs without memory or addresses")
        if cuda.capture is not None:
            if not self.warm:
                raise RuleBroken(f"{component} is captured before it has run")
            self.captured = True
        self.warm = True
        self.trt.log.append((component, int(stream), cuda.capture is not None))
        inputs = [n for n in self.engine.names if self.engine.get_tensor_mode(n) is TensorIOMode.INPUT]
        outputs = [n for n in self.engine.names if n not in inputs]
        operation = Operation(
            component,
            lambda: self.compute(inputs, outputs),
            reads=[self.addresses[n] for n in inputs],
            writes=[*(self.addresses[n] for n in outputs), self.memory],
        )
        cuda.enqueue(stream, operation)
        return self.answer("execute_async_v3", True)

    def compute(self, inputs, outputs):
        """Read device memory as it is at this moment, compute, write."""
        graph = self.engine.plan["graph"]
        if graph not in self.trt.sessions:
            self.trt.sessions[graph] = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        arrays = {name: self.view(name).copy() for name in inputs}
        for name, result in zip(outputs, self.trt.sessions[graph].run(outputs, arrays), strict=True):
            self.view(name)[...] = result

    def view(self, name):
        _, dtype, shape = self.engine.plan["tensors"][name]
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.trt.cuda.check_address(self.addresses[name], size, device=True)
        content = (ctypes.c_uint8 * size).from_address(self.addresses[name])
        return np.frombuffer(content, np.uint8).view(dtype).reshape(shape)
