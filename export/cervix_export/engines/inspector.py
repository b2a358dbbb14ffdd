"""What TensorRT made of a network, layer by layer, as its engine inspector tells it on a GPU.

The parsed network says what types kernels are given; this says which kernels were chosen. Layers that were fused into
generated code name no weights, so the shares are of those that do.

Source: TensorRT documentation, "Engine Inspector".
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

from cervix_engine.backends.cuda.messages import collected_messages
from cervix_engine.errors import EngineBuildError
from cervix_export.engines.proof import Shares

logger = logging.getLogger(__name__)

# How far the kernels' share may lie below the network's before it is told.
_TOLERANCE = 0.01


@dataclass(frozen=True, slots=True)
class LayerTable:
    """The inspector's layers, and what they compute in.

    Attributes:
        layers: as the inspector gives them.
        half_share, integer_share: of the multiply-accumulates of layers with weights; None where none names any.
    """

    layers: tuple[Any, ...]
    half_share: float | None
    integer_share: float | None

    schema: ClassVar[str] = "cervix/engine-layers/1"

    @classmethod
    def of(cls, layers: list[Any]) -> LayerTable:
        """Of the inspector's list; plain names, which it gives of engines without details, count for nothing."""
        products = [item for item in layers if isinstance(item, dict) and item.get("Weights") and item.get("Outputs")]
        macs = Counter[str]()
        for item in products:
            macs[_operands(item)] += _macs(item)
        total = macs.total()
        return cls(tuple(layers), *(macs[kind] / total if total else None for kind in ("half", "integer")))

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": self.schema,
            "half_share": self.half_share,
            "integer_share": self.integer_share,
            "layers": list(self.layers),
        }

    def shortfall(self, network: Shares) -> str | None:
        """In what the kernels fall short of the parsed network; None where they do not, or name no weights."""
        for what, kernels, expected in (
            ("half precision", self.half_share, network.half),
            ("integers", self.integer_share, network.integer),
        ):
            if kernels is not None and kernels < expected - _TOLERANCE:
                return f"kernels do {kernels:.1%} of the arithmetic in {what}, the network says {expected:.1%}"
        return None


def inspect(trt: Any, engine: bytes) -> LayerTable:
    """Load an engine on this machine's GPU and read its layers.

    Raises:
        EngineBuildError: it does not load, or the inspector's answer is no JSON.
    """
    messages = collected_messages(trt)
    runtime = trt.Runtime(messages)
    loaded = runtime.deserialize_cuda_engine(engine)
    if loaded is None:
        raise EngineBuildError(f"the engine that was just built does not load: {messages.last_error}")
    text = loaded.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        return LayerTable.of(list(json.loads(text)["Layers"]))
    except (ValueError, KeyError, TypeError) as error:
        raise EngineBuildError(f"the engine inspector gave no table of layers: {error}") from error


def _macs(layer: dict[str, Any]) -> int:
    """Weights times positions: a convolution gives (batch, channels, height, width), a product (batch, columns)."""
    return int(layer["Weights"]["Count"] * prod(layer["Outputs"][0]["Dimensions"][2:]))


def _operands(layer: dict[str, Any]) -> str:
    kinds = {_kind(layer["Weights"]["Type"]), *(_kind(item["Format/Datatype"]) for item in layer["Inputs"][:1])}
    return kinds.pop() if len(kinds) == 1 else "mixed"


def _kind(text: str) -> str:
    """`integer`, `half` or `other`, of `Int8`, `Half` or a sentence such as `Channel major FP16 format`."""
    words = text.upper().replace("/", " ").split()
    if "INT8" in words:
        return "integer"
    return "half" if {"HALF", "FP16"} & set(words) else "other"
