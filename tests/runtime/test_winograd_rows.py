"""Between convolutions in tiles pictures stay rows: norms, sums and joins give what the untouched graph gives."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from lare2_rt.engines.difference import difference
from lare2_rt.engines.winograd.layers import Choice, Layer, layers_of, shapes_of
from lare2_rt.engines.winograd.norms import norms_of
from lare2_rt.engines.winograd.rewrite import rewrite
from tests.fakes.engine import need_engine
from tests.helpers.written_network import CHANNELS, GROUPS, Network, block


@pytest.fixture(autouse=True)
def _installed():
    need_engine("onnx")


def run(model, array):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": array})


def both(model, choice, array=None):
    """Return what the model gives untouched and rewritten, and leave it rewritten."""
    shape = [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim]
    array = np.random.default_rng(1).standard_normal(shape, np.float32) if array is None else array
    before = run(model, array)
    assert rewrite(model, dict.fromkeys(layers_of(model).values(), choice)) > 0
    onnx.checker.check_model(model, full_check=True)
    return before, run(model, array)


def assert_equal(before, after, bound=1e-5):
    assert len(before) == len(after)
    for expected, found in zip(before, after, strict=True):
        assert found.shape == expected.shape
        assert difference(found, expected).relative_l2 < bound


def operators(model):
    return [node.op_type for node in model.graph.node]


CHOICES = [Choice(2), Choice(4), Choice(2, strips=3), Choice(4, strips=4)]
SHAPES = [(1, CHANNELS, 16, 16), (3, CHANNELS, 8, 12), (2, CHANNELS, 7, 10), (2, CHANNELS, 4, 4)]


class TestBlocks:
    @pytest.mark.parametrize("choice", CHOICES)
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("stages", [1, 2])
    def test_stay_rows(self, shape, choice, stages):
        """Into rows once and out once, however many blocks follow each other."""
        network = Network(*shape)
        model = network.model(block(network, block(network, "x", stages), stages))
        assert_equal(*both(model, choice))
        found = operators(model)
        assert found.count("Transpose") == 2
        assert not {"Conv", "InstanceNormalization", "Div"} & {*found}

    def test_layers_with_different_tiles(self):
        network = Network(1, CHANNELS, 8, 8)
        wide = network.silu(network.conv(network.norm("x"), outputs=32))
        model = network.model(network.add("Add", "x", network.conv(wide, inputs=32)))
        array = np.random.default_rng(1).standard_normal(network.shape, np.float32)
        expected = run(model, array)
        first, second = layers_of(model).values()
        assert rewrite(model, {first: Choice(2), second: Choice(4)}) == 2
        assert_equal(expected, run(model, array))

    def test_what_needs_planes_gets_them(self):
        """Once, whoever asks: a convolution with another stride, one that is not chosen, an output of the graph."""
        network = Network(2, CHANNELS, 8, 8)
        value = block(network, "x")
        down = network.conv(value, strides=[2, 2])
        pooled = network.add("AveragePool", value, kernel_shape=[2, 2], strides=[2, 2])
        model = network.model(value, block(network, network.add("Add", down, pooled), shape=[2, CHANNELS, 4, 4]))
        assert_equal(*both(model, Choice(2)))
        assert operators(model).count("Transpose") == 4
        assert "Conv" in operators(model)

    @pytest.mark.parametrize("choice", CHOICES)
    def test_what_is_still_to_be_added(self, choice):
        """A bias goes through convolutions, whose borders are zeros all the same, and products, into a sum."""
        network = Network(1, CHANNELS, 8, 8)
        first = network.conv("x")
        through = network.conv(network.conv(network.conv(first), side=1))
        model = network.model(network.add("Add", through, network.conv(first, side=1)))
        assert_equal(*both(model, choice))
        pieces = sum(node.name.startswith("block.v4/MatMul") for node in model.graph.node)
        assert operators(model).count("Add") == 2 * pieces  # the sum, and all that was left for the end

    def test_joined_by_channels(self):
        """As in the UNet's way up: other rows, 1×1 convolutions, and what a third reads from one of them."""
        network = Network(2, CHANNELS, 8, 8)
        first = network.conv("x")
        second = network.conv(network.add("Relu", first), side=1)
        joined = network.add("Concat", second, first, "x", axis=1)
        model = network.model(network.add("Mul", network.conv(joined, inputs=3 * CHANNELS), second))
        assert_equal(*both(model, Choice(4)))
        assert "Conv" not in operators(model)

    def test_without_pixels_in_two_axes(self):
        """As before the VAE's attention, where pixels stand in one axis."""
        network = Network(2, CHANNELS, 4, 4)
        value = block(network, "x")
        shape = [2, CHANNELS, 16]
        pixels = network.add("Reshape", value, network.constant(np.array(shape)))
        model = network.model(network.norm(pixels, shape=shape), value)
        assert_equal(*both(model, Choice(4)))
        assert "InstanceNormalization" not in operators(model)


class TestNorms:
    @pytest.mark.parametrize("level", [0.0, 1000.0])
    def test_as_exact_as_float32_allows(self, level):
        """A white background and a high mean, where sums of squares would cancel."""
        network = Network(1, CHANNELS, 64, 64)
        normal = network.norm("x", stages=2)
        model = network.model(network.conv(network.conv(normal)), normal)
        array = np.full(network.shape, level + 1, np.float32)
        array[..., :20] += np.random.default_rng(1).standard_normal(array[..., :20].shape, np.float32)
        _, (_, found) = both(model, Choice(4, strips=2), array)
        groups = array.astype(np.float64).reshape(1, GROUPS, -1)
        groups = (groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + 1e-6)
        scale, shift = (numpy_helper.to_array(c) for c in network.constants if c.dims == [CHANNELS, 1, 1])
        expected = groups.reshape(array.shape) * scale + shift
        assert difference(found, expected).relative_l2 < (1e-6 if level == 0 else 1e-4)

    def test_pictures_do_not_mix(self):
        network = Network(2, CHANNELS, 8, 8)
        model = network.model(block(network, "x"))
        array = np.random.default_rng(1).standard_normal(network.shape, np.float32) * np.float32([[[[1]]], [[[50]]]])
        before, after = both(model, Choice(4), array)
        assert_equal([before[0][:1]], [after[0][:1]])
        assert_equal([before[0][1:]], [after[0][1:]])

    @pytest.mark.parametrize("stages", [1, 2])
    def test_are_found(self, stages):
        network = Network(2, CHANNELS, 8, 8)
        model = network.model(network.norm("x", stages))
        (norm,) = found_in(model).values()
        assert (norm.source, norm.groups, norm.epsilon) == ("x", GROUPS, pytest.approx(1e-6))

    def test_others_are_left_alone(self):
        """Scaled inside; and one whose inner values somebody else reads."""
        network = Network(2, CHANNELS, 8, 8)
        scaled = network.norm("x", scale=2.0)
        watched = network.norm("x", stages=2)
        assert len(found_in(network.model(scaled, watched))) == 1
        centred = next(node.output[0] for node in network.nodes if node.op_type == "Sub")
        model = network.model(network.conv(network.add("Add", scaled, watched)), centred)
        assert found_in(model) == {}
        assert_equal(*both(model, Choice(4)))
        assert "InstanceNormalization" in operators(model)


def found_in(model):
    inside = {tensor.name: tensor for tensor in model.graph.initializer}
    return norms_of(model, shapes_of(model), lambda name: numpy_helper.to_array(inside[name]))


def test_without_a_choice_nothing_changes():
    network = Network(1, CHANNELS, 8, 8)
    model = network.model(block(network, "x"))
    untouched = model.SerializeToString()
    assert rewrite(model, {Layer(1, 1, 1, 1, 1): Choice(2)}) == 0
    assert model.SerializeToString() == untouched
