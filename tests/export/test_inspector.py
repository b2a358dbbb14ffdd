"""The inspector's table: what kernels compute in, held against the network. Its form is TensorRT's, its GPU is none."""

from __future__ import annotations

import json
from importlib.resources import files
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest

from cervix_engine.errors import EngineBuildError
from cervix_export.engines.inspector import LayerTable, inspect
from cervix_export.engines.proof import Shares


def layer(weights: str, data: str, *, count: int = 9 * 64 * 64, side: int = 56) -> dict[str, Any]:
    return {
        "Name": "conv + relu",
        "LayerType": "CaskConvolution",
        "Inputs": [{"Name": "x", "Dimensions": [-1, 64, side, side], "Format/Datatype": data}],
        "Outputs": [{"Name": "y", "Dimensions": [-1, 64, side, side], "Format/Datatype": data}],
        "Weights": {"Type": weights, "Count": count},
    }


HALF = layer("Half", "Channel major FP16 format where channel % 8 == 0")
INTEGER = layer("Int8", "Thirty-two wide channel vectorized row major Int8 format")
FLOAT = layer("Float", "Row major linear FP32")
POOL = {"Name": "pool", "LayerType": "Pooling", "Inputs": [], "Outputs": []}


@pytest.mark.parametrize(
    ("layers", "half", "integer"),
    [
        ([HALF, HALF, POOL], 1.0, 0.0),
        ([INTEGER, INTEGER, INTEGER, HALF], 0.25, 0.75),
        ([FLOAT, HALF], 0.5, 0.0),
        ([layer("Int8", "Row major linear FP16"), HALF], 0.5, 0.0),
        ([HALF, layer("Float", "FP32", side=28)], 0.8, 0.0),
        ([POOL], None, None),
        (["a name", "another"], None, None),
        ([], None, None),
    ],
)
def test_shares_are_counted_in_multiply_accumulates(
    layers: list[Any], half: float | None, integer: float | None
) -> None:
    table = LayerTable.of(layers)
    assert (table.half_share, table.integer_share) == (half, integer)
    schema = json.loads((files("cervix_export") / "schemas" / "engine_layers.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(table.to_json(), schema)


def test_kernels_are_held_against_the_network() -> None:
    asked = Shares(half=1.0, integer=0.0, integer_of_the_rest=0.0)
    assert LayerTable.of([HALF]).shortfall(asked) is None
    assert LayerTable.of([POOL]).shortfall(asked) is None
    told = LayerTable.of([HALF, FLOAT]).shortfall(asked)
    assert told == "kernels do 50.0% of the arithmetic in half precision, the network says 100.0%"
    integers = Shares(half=0.02, integer=0.98, integer_of_the_rest=1.0)
    assert "in integers" in str(LayerTable.of([HALF]).shortfall(integers))


class Runtime:
    """What the inspector needs of TensorRT, with one engine."""

    ILogger = type("ILogger", (), {"ERROR": 1, "INTERNAL_ERROR": 0, "WARNING": 2})
    LayerInformationFormat = SimpleNamespace(JSON="json")

    def __init__(self, text: str | None) -> None:
        self._text = text

    def Runtime(self, messages: Any) -> Any:  # noqa: N802 - TensorRT's name
        def load(_: bytes) -> Any:
            if self._text is None:
                messages.log(1, "the wrong GPU")
                return None
            inspector = SimpleNamespace(get_engine_information=lambda kind: self._text if kind == "json" else "")
            return SimpleNamespace(create_engine_inspector=lambda: inspector)

        return SimpleNamespace(deserialize_cuda_engine=load)


def test_an_engines_layers_are_read() -> None:
    table = inspect(Runtime(json.dumps({"Layers": [HALF], "Bindings": ["tiles"]})), b"engine")
    assert table == LayerTable.of([HALF])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "does not load: the wrong GPU"),
        ("no JSON", "no table of layers"),
        ('{"Layer": []}', "no table of layers"),
    ],
)
def test_what_is_no_table_is_an_error(text: str | None, reason: str) -> None:
    with pytest.raises(EngineBuildError, match=reason):
        inspect(Runtime(text), b"engine")


def test_the_names_are_those_of_the_real_runtime() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    assert trt.LayerInformationFormat.JSON is not None
    assert trt.ProfilingVerbosity.DETAILED is not None
    assert hasattr(trt.ICudaEngine, "create_engine_inspector")
    assert hasattr(trt.EngineInspector, "get_engine_information")
