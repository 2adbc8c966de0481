"""The reader of ONNX files against the real protobuf parser: what that one finds, ours must not miss."""

import time

import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings, strategies as st
from onnx import TensorProto, helper

from lare2_rt.bundle.onnx_audit import MAX_BYTES, audit_onnx, read_facts
from lare2_rt.errors import BundleError


def external(location, name="w", **entries):
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def with_entries(tensor, other):
    tensor.external_data.extend(other.external_data)
    return tensor


def sparse(location):
    indices = helper.make_tensor("i", TensorProto.INT64, [2], [0, 1])
    return helper.make_sparse_tensor(external(location), indices, [4])


def node(**attributes):
    return helper.make_node("If" if "then_branch" in attributes else "Constant", [], ["y"], "n", **attributes)


def graph(nodes=(), initializers=(), sparse_initializers=()):
    made = helper.make_graph(list(nodes), "g", [], [], list(initializers))
    made.sparse_initializer.extend(sparse_initializers)
    return made


def model(nodes=(), initializers=(), sparse_initializers=(), domains=("",)):
    opsets = [helper.make_opsetid(domain, 20) for domain in domains]
    return helper.make_model(graph(nodes, initializers, sparse_initializers), opset_imports=opsets)


def nested(inner, depth):
    for _ in range(depth):
        inner = graph([node(then_branch=inner, else_branch=graph())])
    return inner.node


def audited(made, tmp_path, files=("good.data",)):
    path = tmp_path / "x.onnx"
    path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    audit_onnx(path, files=files)


def test_own_weights_are_allowed(tmp_path):
    good = external("good.data", offset="0", length="8", checksum="")
    audited(model([node(value=good)], [good], [sparse("good.data")], domains=("", "ai.onnx")), tmp_path)
    with pytest.raises(BundleError, match=r"'good\.data', which its manifest does not list"):
        audited(model([], [good]), tmp_path, files=())


BAD = "../evil.data"
PLACES = {
    "initializer": lambda bad: model([], [bad]),
    "second entry": lambda bad: model([], [with_entries(external("good.data"), bad)]),
    "not marked external": lambda bad: model([], [with_entries(TensorProto(raw_data=b"12345678"), bad)]),
    "sparse values": lambda bad: model([], [], [helper.make_sparse_tensor(bad, bad, [4])]),
    "attribute": lambda bad: model([node(value=bad)]),
    "attribute list": lambda bad: model([node(values=[bad])]),
    "sparse attribute": lambda bad: model([node(value=helper.make_sparse_tensor(bad, bad, [4]))]),
    "sparse attribute list": lambda bad: model([node(values=[helper.make_sparse_tensor(bad, bad, [4])])]),
    "subgraph": lambda bad: model([node(then_branch=graph([], [bad]), else_branch=graph())]),
    "subgraph list": lambda bad: model([node(branches=[graph(), graph([], [bad])])]),
    "deep subgraph": lambda bad: model(nested(graph([node(value=bad)]), 8)),
}


@pytest.mark.parametrize("place", PLACES)
def test_weights_elsewhere_are_found_wherever_they_hide(tmp_path, place):
    with pytest.raises(BundleError, match=r"x\.onnx names weights in '\.\./evil\.data'.*again$"):
        audited(PLACES[place](external(BAD)), tmp_path)
    audited(PLACES[place](external("good.data")), tmp_path)


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "", ".", "sub/good.data", "good.data\0x", "*/_ORT_MEM_ADDR_/*", "GOOD.DATA", "a\nb"]
)
def test_locations_are_names_of_listed_files(tmp_path, location):
    with pytest.raises(BundleError, match="names weights in") as refused:
        audited(model([], [external(location)]), tmp_path)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    "made",
    [
        model([helper.make_node("Evil", [], ["y"], domain="com.evil")]),
        model(nested(graph([helper.make_node("Evil", [], ["y"], domain="com.evil")]), 3)),
        model(domains=("", "com.evil")),
    ],
    ids=["node", "subgraph", "import"],
)
def test_other_domains_are_refused(tmp_path, made):
    with pytest.raises(BundleError, match=r"needs operators of 'com\.evil'.*again$"):
        audited(made, tmp_path)


def _with(made, **fields):
    for name, values in fields.items():
        getattr(made, name).extend(values)
    return made


NO_PLAIN_ONNX = {
    "functions": (_with(model(), functions=[onnx.FunctionProto(name="f", domain="x")]), "field 25 in Model"),
    "training": (_with(model(), training_info=[onnx.TrainingInfoProto()]), "field 20 in Model"),
    "prepacked weights": (model([], [external("good.data", prepacked_0="x")]), "external weights by 'prepacked_0'"),
    "depth": (model(nested(graph(), 20)), "nested too deeply"),
    "unknown field": (model().SerializeToString() + b"\xfa\x07\x00", "field 127 in Model"),
    "truncated": (model().SerializeToString()[:-1], "not a valid ONNX file"),
    "length beyond the end": (b"\x3a\x05abc", "not a valid ONNX file"),
    "length beyond 64 bits": (b"\x3a" + b"\xff" * 20, "not a valid ONNX file"),
    "overlong number": (b"\x08" + b"\x80" * 10 + b"\x00", "not a valid ONNX file"),
    "number for a message": (b"\x38\x01", "not a valid ONNX file"),
    "group": (b"\x3b\x3c", "not a valid ONNX file"),
    "zip": (b"PK\x03\x04", "field 10 in Model"),
    "pickle": (b"\x80\x04\x95pickle", "field 64 in Model"),
    "zeros": (b"\0" * 8, "field 0 in Model"),
}


@pytest.mark.parametrize("kind", NO_PLAIN_ONNX)
def test_what_is_no_plain_onnx_is_refused(tmp_path, kind):
    made, words = NO_PLAIN_ONNX[kind]
    with pytest.raises(BundleError, match=rf"x\.onnx .*{words}.*again$"):
        audited(made, tmp_path)


def test_two_values_of_one_entry_are_refused():
    """Parsers take the last one, and a reader that took the first would look at the wrong file."""
    entry = b"\x0a\x08location" + b"\x12\x01a" + b"\x12\x01b"
    tensor = b"\x6a" + bytes([len(entry)]) + entry
    inner = b"\x2a" + bytes([len(tensor)]) + tensor
    content = b"\x3a" + bytes([len(inner)]) + inner
    assert onnx.load_from_string(content).graph.initializer[0].external_data[0].value == "b"
    with pytest.raises(BundleError, match="not a valid"):
        read_facts(content, "x")


def test_huge_and_missing_files(tmp_path):
    path = tmp_path / "x.onnx"
    with path.open("wb") as handle:
        handle.truncate(MAX_BYTES + 1)
    with pytest.raises(BundleError, match="larger than"):
        audit_onnx(path, files=())
    with pytest.raises(BundleError, match="cannot be read: no such file"):
        audit_onnx(tmp_path / "y.onnx", files=())


def everything():
    """A small model with weights, subgraphs, sparse tensors and attributes of every kind."""
    good = external("good.data", offset="0", length="8")
    return model(
        [
            node(value=good),
            node(then_branch=graph([node(value=good)], [good]), else_branch=graph()),
            node(a=[1, 2], b="s"),
        ],
        [good, helper.make_tensor("t", TensorProto.FLOAT, [2], [1, 2])],
        [sparse("good.data")],
    ).SerializeToString()


def as_text(value):
    """protobuf gives bytes where a string is not UTF-8."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def named_by_protobuf(message):
    """Every location and domain in a parsed message, whatever holds it."""
    locations, domains = set(), set()
    for field, value in message.ListFields():
        if field.message_type is None:
            if field.name == "domain" and message.DESCRIPTOR.name != "ModelProto":
                domains.add(as_text(value))
            continue
        for child in value if not hasattr(value, "ListFields") else [value]:
            if child.DESCRIPTOR.name == "StringStringEntryProto":
                if field.name == "external_data" and child.key == "location":
                    locations.add(as_text(child.value))
                continue
            deeper = named_by_protobuf(child)
            locations |= deeper[0]
            domains |= deeper[1]
    return locations, domains


def check_against_protobuf(content):
    """Ours refuses, or protobuf refuses, or protobuf finds nothing that ours has not found."""
    try:
        facts = read_facts(content, "x")
        parsed = onnx.ModelProto.FromString(content)
    except (BundleError, DecodeError):
        return False
    locations, domains = named_by_protobuf(parsed)
    assert locations <= facts.locations
    assert domains <= facts.domains
    return True


def test_every_flipped_bit_is_refused_or_understood():
    content = everything()
    assert check_against_protobuf(content)
    understood = 0
    for position in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[position] ^= 1 << bit
            understood += check_against_protobuf(bytes(flipped))
    assert 0 < understood < 8 * len(content)


@given(st.data())
@settings(max_examples=500, deadline=None)
def test_spliced_bytes_are_refused_or_understood(data):
    content = everything()
    begin = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(begin, min(len(content), begin + 40)))
    piece = data.draw(st.binary(max_size=24) | st.sampled_from([content[i : i + 32] for i in range(0, 600, 7)]))
    check_against_protobuf(content[:begin] + piece + content[end:])


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_noise_is_refused_or_understood(content):
    check_against_protobuf(content)


def test_full_size_graphs_take_little_time(embedded, tmp_path):
    """A graph of 2 MB, as the full-size UNet's, in 0.3 s of processor time."""
    large = onnx.load(embedded / "unet_step.b1.fp32.portable.onnx", load_external_data=False)
    nodes, initializers, infos = list(large.graph.node), list(large.graph.initializer), list(large.graph.value_info)
    while large.ByteSize() < 2_000_000:
        large.graph.node.extend(nodes)
        large.graph.initializer.extend(initializers)
        large.graph.value_info.extend(infos)
    path = tmp_path / "large.onnx"
    path.write_bytes(large.SerializeToString())
    times = []
    for _ in range(3):
        begin = time.process_time()
        audit_onnx(path, files=["unet_step.fp32.portable.data"])
        times.append(time.process_time() - begin)
    assert min(times) < 0.3
