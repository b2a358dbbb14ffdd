"""What is stated of a model that somebody else trained, so that it can be brought to raw pixels and probabilities.

The host's part, decode and resize to `input_size`, is the engine's one rule. All that comes after is stated here and
put into the graph: centre crop, layout, order of channels, scale, mean and standard deviation; softmax behind.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract
from cervix_engine.errors import ContractError

RECORD_FILE = "import.json"
RECORD_SCHEMA = "cervix/imported/1"

Layout = Literal["NHWC", "NCHW"]
ChannelOrder = Literal["RGB", "BGR"]
Output = Literal["logits", "probabilities"]

_CONTRACT_KEYS = ("classes", "input_size", "exif_policy", "tile_statistics", "scaled_decoding", "operating_point")


@dataclass(frozen=True, slots=True)
class StatedInput:
    """What the model takes, one channel at a time: `(pixel / 255 * pixel_max - mean) / std`.

    Attributes:
        layout: of its input.
        channel_order: of its channels; `mean` and `std` are in this order.
        pixel_max: what a white pixel is before mean and deviation: 1, or 255.
        mean, std: one for each channel, in units of `pixel_max`.
        crop: (height, width) of the centre that it sees of a tile of the contract's size; None for all of it.
    """

    layout: Layout = "NHWC"
    channel_order: ChannelOrder = "RGB"
    pixel_max: float = 255.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    crop: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("layout", get_args(Layout)), ("channel_order", get_args(ChannelOrder))):
            if getattr(self, name) not in allowed:
                raise ContractError(f"input: {name} {getattr(self, name)!r}, expected one of {', '.join(allowed)}")
        if not _is_number(self.pixel_max) or self.pixel_max <= 0:
            raise ContractError(f"input: pixel_max {self.pixel_max!r}, expected a positive number such as 1 or 255")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != 3 or not all(map(_is_number, values)):
                raise ContractError(f"input: {name} {values!r}, expected three numbers")
        if min(self.std) <= 0:
            raise ContractError(f"input: std {self.std}, expected positive numbers")
        if self.crop is not None and (len(self.crop) != 2 or not all(type(n) is int and n > 0 for n in self.crop)):
            raise ContractError(f"input: crop {self.crop}, expected (height, width)")

    @property
    def scale(self) -> tuple[float, ...]:
        """What a pixel, 0 to 255, is multiplied by; one for each channel."""
        return tuple(self.pixel_max / 255 / std for std in self.std)

    @property
    def offset(self) -> tuple[float, ...]:
        """What is added then."""
        return tuple(-mean / std for mean, std in zip(self.mean, self.std, strict=True))

    @property
    def is_raw(self) -> bool:
        """Whether the model takes pixels as they are."""
        return self == StatedInput()


@dataclass(frozen=True, slots=True)
class ImportStatement:
    """All that is stated of a model: what its inputs and outputs mean, and what lies between raw pixels and it."""

    contract: ModelContract
    input: StatedInput = field(default_factory=StatedInput)
    output: Output = "probabilities"

    schema: ClassVar[str] = "cervix/import/1"

    def __post_init__(self) -> None:
        if self.output not in get_args(Output):
            raise ContractError(f"output {self.output!r}: expected one of {', '.join(get_args(Output))}")
        crop, size = self.input.crop, self.contract.input_size
        if crop is not None and (crop[0] > size[0] or crop[1] > size[1]):
            raise ContractError(f"input: crop {crop} is larger than input_size {size}")

    @property
    def seen_size(self) -> tuple[int, int]:
        """(height, width) of what the model itself takes."""
        return self.input.crop or self.contract.input_size

    def to_json(self) -> dict[str, Any]:
        stated = self.contract.to_json()
        kept = {key: stated[key] for key in _CONTRACT_KEYS if key in stated}
        return {"schema": self.schema, **kept, "input": asdict(self.input), "output": self.output}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ImportStatement:
        """Read the form of the schema `cervix/import/1`; or a contract, whose model takes raw pixels already.

        Raises:
            ContractError: it is neither, or states what cannot be.
        """
        if isinstance(data, Mapping) and data.get("schema") == ModelContract.schema:
            return cls(ModelContract.from_json(data))
        if not isinstance(data, Mapping) or data.get("schema") != cls.schema:
            raise ContractError(f"expected the schema {cls.schema!r}, or {ModelContract.schema!r} for raw pixels")
        known = {"schema", *_CONTRACT_KEYS, "input", "output", "resize"}
        if unknown := sorted(data.keys() - known):
            raise ContractError(f"unknown key {unknown[0]!r}: expected some of {', '.join(sorted(known))}")
        if data.get("resize", "area-or-linear") != "area-or-linear":
            raise ContractError(
                f"resize {data['resize']!r}: tiles are resized by the engine's rule, area-or-linear; leave it out, and "
                "see by --expected what that changes"
            )
        if "classes" not in data or "input_size" not in data:
            raise ContractError("classes and input_size must be stated")
        stated = {key: data[key] for key in _CONTRACT_KEYS if key in data}
        whole = {**ModelContract(SIPAKMED_CLASSES).to_json(), **stated}
        return cls(ModelContract.from_json(whole), _input(data.get("input", {})), data.get("output", "probabilities"))

    @classmethod
    def load(cls, path: Path) -> ImportStatement:
        """Read a file.

        Raises:
            ContractError: it cannot be read, or as `from_json`.
        """
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ContractError(f"{path}: {reason}") from error


def is_imported(bundle: Bundle) -> bool:
    """Whether somebody else trained a bundle's model."""
    return RECORD_FILE in bundle


def _input(data: Any) -> StatedInput:
    names = [item.name for item in fields(StatedInput)]
    if not isinstance(data, Mapping) or (unknown := sorted(data.keys() - set(names))):
        raise ContractError(
            f"input: {unknown[0] if isinstance(data, Mapping) else data!r}, expected {', '.join(names)}"
        )
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    try:
        return StatedInput(**values)
    except TypeError as error:
        raise ContractError(f"input is malformed: {error}") from error


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
