"""A batch that takes long fails soon after it is cancelled, and the backend goes on answering."""

from __future__ import annotations

import threading

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cervix_engine.backends import Backend, Combination
from cervix_engine.backends.onnxruntime import OnnxRuntimeCpu
from cervix_engine.backends.openvino import OpenVino
from cervix_engine.backends.runtime import GraphRuntime
from cervix_engine.errors import InferenceError

LAYERS, CHANNELS = 200, 64


def slow_graph() -> bytes:
    """Seconds of work for a batch of 32, in layers of some milliseconds each."""
    rng = np.random.default_rng(0)
    constants = {
        "first": rng.normal(0, 0.1, (CHANNELS, 3, 3, 3)).astype(np.float32),
        "next": rng.normal(0, 0.01, (CHANNELS, CHANNELS, 3, 3)).astype(np.float32),
        "axes": np.array([2, 3]),
    }
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "first"], ["v0"], pads=[1, 1, 1, 1]),
    ]
    for index in range(LAYERS):
        nodes.append(helper.make_node("Conv", [f"v{index}", "next"], [f"c{index}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"v{index + 1}"]))
    nodes.append(helper.make_node("ReduceMean", [f"v{LAYERS}", "axes"], ["probabilities"], keepdims=0))
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", 32, 32, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", CHANNELS])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def opened(runtime: GraphRuntime) -> Backend:
    return runtime.load(slow_graph(), runtime.info(Combination(runtime.name, "fp32"), sha256="0" * 64), 0)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("runtime", [OnnxRuntimeCpu(), OpenVino()], ids=lambda runtime: runtime.name)
def test_a_cancelled_batch_fails_and_the_next_one_is_answered(
    runtime: GraphRuntime, capfd: pytest.CaptureFixture[str]
) -> None:
    pixels, failures = np.zeros((256, 32, 32, 3), np.uint8), list[InferenceError]()

    def compute(backend: Backend) -> None:
        try:
            backend.infer(pixels)
        except InferenceError as error:
            failures.append(error)

    with opened(runtime) as backend:
        expected = backend.infer(pixels[:1])
        computing = threading.Thread(target=compute, args=(backend,))
        computing.start()
        while computing.is_alive():
            backend.cancel()
            computing.join(0.01)
        assert "failed on a batch of 256" in str(failures)
        np.testing.assert_array_equal(backend.infer(pixels[:1]), expected)
    assert capfd.readouterr().err == ""


def test_what_is_idle_can_be_cancelled() -> None:
    for runtime in (OnnxRuntimeCpu(), OpenVino()):
        with opened(runtime) as backend:
            backend.cancel()
            assert backend.infer(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, CHANNELS)
