#!/usr/bin/env python3
"""Writes the small cases under cases/, in the layout of the ONNX backend suite.

Models and data are our own; expected values come from the numpy expressions below, not from
any runtime. Needs the packages onnx and numpy. Run it again after a change and commit what
it writes.
"""
import pathlib
import numpy as np
from onnx import TensorProto, helper, numpy_helper

HERE = pathlib.Path(__file__).parent / "cases" / "own"
rng = np.random.default_rng(20)


def f32(*shape):
    return rng.uniform(-2, 2, shape).astype(np.float32)


def case(name, nodes, inputs, outputs, initializers=(), opset=17, domains=()):
    """inputs, outputs and initializers: name to array."""
    def info(n, a):
        return helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)

    graph = helper.make_graph(
        nodes,
        name,
        [info(n, a) for n, a in inputs.items()],
        [info(n, a) for n, a in outputs.items()],
        [numpy_helper.from_array(a, n) for n, a in dict(initializers).items()],
    )
    opsets = [helper.make_opsetid("", opset)] + [helper.make_opsetid(d, 1) for d in domains]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    data = HERE / name / "test_data_set_0"
    data.mkdir(parents=True, exist_ok=True)
    (HERE / name / "model.onnx").write_bytes(model.SerializeToString())
    for kind, tensors in (("input", inputs), ("output", outputs)):
        for i, (n, a) in enumerate(tensors.items()):
            (data / f"{kind}_{i}.pb").write_bytes(numpy_helper.from_array(a, n).SerializeToString())


x, w, b = f32(2, 3, 5, 6), f32(4, 3, 3, 3), f32(4)
padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
y = np.zeros((2, 4, 5, 6))
for i in range(5):
    for j in range(6):
        y[:, :, i, j] = np.einsum("nchw,mchw->nm", padded[:, :, i:i + 3, j:j + 3].astype(np.float64), w) + b
case(
    "conv_relu",
    [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"]),
    ],
    {"x": x},
    {"y": np.maximum(y, 0).astype(np.float32)},
    {"w": w, "b": b},
)

x, w, c = f32(3, 4), f32(5, 4), f32(5)
case(
    "gemm_transposed",
    [helper.make_node("Gemm", ["x", "w", "c"], ["y"], transB=1, alpha=0.5, beta=2.0)],
    {"x": x, "w": w, "c": c},
    {"y": (0.5 * x.astype(np.float64) @ w.T + 2.0 * c).astype(np.float32)},
)

x, b = f32(2, 3, 4, 5), f32(3)
case(
    "add_opset6_axis",
    [helper.make_node("Add", ["x", "b"], ["y"], broadcast=1, axis=1)],
    {"x": x, "b": b},
    {"y": x + b[:, None, None]},
    opset=6,
)

x, pads = f32(2, 4, 5), np.array([0, 2, 1, 0, 1, 3], np.int64)
case(
    "pad_reflect",
    [helper.make_node("Pad", ["x", "pads"], ["y"], mode="reflect")],
    {"x": x, "pads": pads},
    {"y": np.pad(x, ((0, 0), (2, 1), (1, 3)), mode="reflect")},
)

x, start, end = f32(4, 6), np.array([4, 0], np.int64), np.array([-5, 5], np.int64)
steps = np.array([-2, 2], np.int64)
case(
    "slice_backwards_then_transpose",
    [
        helper.make_node("Slice", ["x", "start", "end", "", "steps"], ["s"]),
        helper.make_node("Transpose", ["s"], ["y"], perm=[1, 0]),
    ],
    {"x": x, "start": start, "end": end, "steps": steps},
    {"y": np.ascontiguousarray(x[4:-5:-2, 0:5:2].T)},
)

lp, labels, weight = f32(3, 4, 2), np.array([[0, 3], [2, 2], [1, 0]], np.int64), np.abs(f32(4))
keep = labels != 2
picked = np.take_along_axis(lp, labels[:, None], 1)[:, 0].astype(np.float64)
scale = weight[labels] * keep
case(
    "nll_loss_weighted_mean_ignoring",
    [helper.make_node("NegativeLogLikelihoodLoss", ["x", "t", "w"], ["loss"], reduction="mean", ignore_index=2)],
    {"x": lp, "t": labels, "w": weight},
    {"loss": np.array((-picked * scale).sum() / scale.sum(), np.float32)},
)

r, t, x, g, v = np.array(0.1, np.float32), np.array(3, np.int64), f32(4), f32(4), f32(4)
grad = 0.01 * x + g
momentum = 0.9 * v + 0.5 * grad
case(
    "nesterov_step",
    [
        helper.make_node(
            "Momentum",
            ["r", "t", "x", "g", "v"],
            ["x_new", "v_new"],
            domain="ai.onnx.preview.training",
            alpha=0.9,
            beta=0.5,
            norm_coefficient=0.01,
            mode="nesterov",
        )
    ],
    {"r": r, "t": t, "x": x, "g": g, "v": v},
    {
        "x_new": (x - 0.1 * (grad + 0.9 * momentum)).astype(np.float32),
        "v_new": momentum.astype(np.float32),
    },
    domains=["ai.onnx.preview.training"],
)

a, b = np.array([7, -7, 5], np.int64), np.array([2, 2, -3], np.int64)
case(
    "integer_division_is_known_or_refused",
    [helper.make_node("Div", ["a", "b"], ["y"])],
    {"a": a, "b": b},
    {"y": np.trunc(a / b).astype(np.int64)},
)

x = f32(2, 3)
case("an_unknown_operator", [helper.make_node("Det", ["x"], ["y"])], {"x": f32(3, 3)}, {"y": x[0, 0]})
