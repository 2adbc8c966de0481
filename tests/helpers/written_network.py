"""Small graphs with the layers of the diffusion networks, as the export writes them."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS, GROUPS = 16, 4


class Network:
    """A graph that is put together node by node, with random weights, or with whole ones that no rounding touches."""

    def __init__(self, *shape, whole=False):
        self.shape, self.whole, self.nodes, self.constants = list(shape), whole, [], []
        self.generator = np.random.default_rng(3)

    def add(self, operator, *inputs, **attributes):
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], f"block.{name}/{operator}", **attributes))
        return name

    def constant(self, array):
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(self, *shape):
        if self.whole:
            return self.constant((np.arange(np.prod(shape)) % 7 * 576).reshape(shape).astype(np.float32))
        return self.constant(self.generator.standard_normal(shape, np.float32))

    def conv(self, value, outputs=CHANNELS, inputs=CHANNELS, side=3, **attributes):
        weight = self.weight(outputs, inputs, side, side)
        attributes = {"pads": [side // 2] * 4, "kernel_shape": [side, side]} | attributes
        return self.add("Conv", value, weight, self.weight(outputs), **attributes)

    def norm(self, value, stages=1, shape=None, scale=1.0):
        """A group norm as ``lare2_export.graph.prepare`` exports it."""
        shape = shape or self.shape
        rest = CHANNELS // GROUPS * int(np.prod(shape[2:]))
        grouped = [shape[0], GROUPS, *([rest] if stages == 1 else [rest // shape[-1], shape[-1]])]
        groups = self.add("Reshape", value, self.constant(np.array(grouped)))
        if stages == 1:
            ones, zeros = (self.constant(np.full(GROUPS, number, np.float32)) for number in (scale, 0))
            normal = self.add("InstanceNormalization", groups, ones, zeros, epsilon=1e-6)
        else:
            centred = self.add("Sub", groups, self.mean(groups))
            variance = self.mean(self.add("Mul", centred, centred))
            added = self.add("Add", variance, self.constant(np.array(1e-6, np.float32)))
            normal = self.add("Div", centred, self.add("Sqrt", added))
        back = self.add("Reshape", normal, self.constant(np.array(shape)))
        channel = [CHANNELS, *[1] * (len(shape) - 2)]
        return self.add("Add", self.add("Mul", back, self.weight(*channel)), self.weight(*channel))

    def mean(self, value):
        for axis in (3, 2):
            value = self.add("ReduceMean", value, self.constant(np.array([axis])), keepdims=1)
        return value

    def silu(self, value):
        return self.add("Mul", value, self.add("Sigmoid", value))

    def model(self, *results):
        ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)]
        outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in results]
        graph = helper.make_graph(self.nodes, "network", ends, outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        model = onnx.shape_inference.infer_shapes(model)
        del model.graph.value_info[:]
        onnx.checker.check_model(model, full_check=True)
        return model


def block(network, value, stages=1, shape=None):
    """A residual block of the networks."""
    inner = network.conv(network.silu(network.norm(value, stages, shape)))
    return network.add("Add", value, network.conv(network.silu(network.norm(inner, stages, shape))))
