"""What a model's inputs and outputs mean: immutable, the same file beside Keras, ONNX and TensorRT.

The deployed graph takes raw pixels, `uint8 (N, height, width, 3)`, RGB, and gives `float32 (N, classes)`
probabilities; scaling, transpose and softmax are inside it. What is left to a host, decode and resize, is
fixed here and done by `cervix_engine.tiles.preprocess` alone.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from cervix_engine.errors import ContractError
from cervix_engine.files import write_json

Category = Literal["normal", "benign", "abnormal"]
ExifPolicy = Literal["ignore", "apply"]

# A table's `pred` column holds it: spreadsheets take a leading '-' for a formula.
_CLASS_NAME = re.compile(r"\w[\w-]*")


@dataclass(frozen=True, slots=True)
class TileClass:
    """One output of the model.

    Attributes:
        name: the label, used in column names (`prob_<name>`).
        display_name: for people.
        category: clinical category, after Plissiti et al. 2018 for SIPaKMeD's classes.
    """

    name: str
    display_name: str
    category: Category

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _CLASS_NAME.fullmatch(self.name):
            raise ContractError(f"class name {self.name!r}: expected letters, digits, '_', and '-' not in front")
        if not isinstance(self.display_name, str) or not self.display_name:
            raise ContractError(f"class {self.name}: display name {self.display_name!r}, expected some text")
        if self.category not in get_args(Category):
            raise ContractError(f"class {self.name}: category {self.category!r}, expected one of {get_args(Category)}")


@dataclass(frozen=True, slots=True)
class TileStatistic:
    """Spread of one measure over the training tiles: its 0.5th, 50th and 99.5th percentile.

    `name` carries the unit, such as `height_px` or `mean_red` (0-255).
    """

    name: str
    low: float
    median: float
    high: float

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ContractError(f"tile statistic {self.name!r}: expected a name")
        if not -math.inf < self.low <= self.median <= self.high < math.inf:
            raise ContractError(f"tile statistic {self.name}: expected finite low <= median <= high")


SIPAKMED_CLASSES: tuple[TileClass, ...] = (
    TileClass("cervix_dyk", "Dyskeratotic", "abnormal"),
    TileClass("cervix_koc", "Koilocytotic", "abnormal"),
    TileClass("cervix_mep", "Metaplastic", "benign"),
    TileClass("cervix_pab", "Parabasal", "normal"),
    TileClass("cervix_sfi", "Superficial-intermediate", "normal"),
)


@dataclass(frozen=True, slots=True)
class ModelContract:
    """Immutable meaning of a model's input and output.

    Attributes:
        classes: in output order.
        input_size: (height, width) in pixels.
        channel_order: always RGB.
        layout: always NHWC, uint8.
        interpolation: `area-or-linear`: INTER_AREA when both axes shrink or stay, else INTER_LINEAR;
            aspect is ignored, as in the paper.
        exif_policy: whether an EXIF orientation turns the pixels.
        temperature: a record of the calibration. It is already folded into the last Dense layer: never
            apply it again.
        tile_statistics: colour and size of the training tiles, for domain checks.
        scaled_decoding: whether a JPEG of at least twice (four times) the input size on both axes is decoded at 1/2
            (1/4), which is faster and gives other pixels: a model is trained and certified with it, or without it.
            Where an EXIF orientation turns the pixels, none is.

    Raises:
        ContractError: if a value is outside what the engine implements.
    """

    classes: tuple[TileClass, ...]
    input_size: tuple[int, int] = (224, 224)
    channel_order: str = "RGB"
    layout: str = "NHWC"
    interpolation: str = "area-or-linear"
    exif_policy: ExifPolicy = "ignore"
    temperature: float = 1.0
    tile_statistics: tuple[TileStatistic, ...] = field(default=())
    scaled_decoding: bool = False

    schema: ClassVar[str] = "cervix/contract/1"

    def __post_init__(self) -> None:
        names = self.class_names
        if len(names) < 2 or len(set(names)) != len(names):
            raise ContractError(f"classes {names}: expected at least two, all different")
        fixed = {"channel_order": "RGB", "layout": "NHWC", "interpolation": "area-or-linear"}
        for key, expected in fixed.items():
            if getattr(self, key) != expected:
                raise ContractError(f"{key} {getattr(self, key)!r}: this engine implements {expected!r} only")
        if self.exif_policy not in get_args(ExifPolicy):
            raise ContractError(f"exif_policy {self.exif_policy!r}: expected one of {get_args(ExifPolicy)}")
        # `type` and not `isinstance`: JSON's true is an int to Python.
        if len(self.input_size) != 2 or not all(type(n) is int and 1 <= n <= 4096 for n in self.input_size):
            raise ContractError(f"input_size {self.input_size}: expected (height, width) within 1..4096")
        if type(self.scaled_decoding) is not bool:
            raise ContractError(f"scaled_decoding {self.scaled_decoding!r}: expected true or false")
        if not 0 < self.temperature < math.inf:
            raise ContractError(f"temperature {self.temperature}: expected a positive number")

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(item.name for item in self.classes)

    def to_json(self) -> dict[str, Any]:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values["input_size"] = list(self.input_size)
        for key in ("classes", "tile_statistics"):
            values[key] = [_plain(item) for item in values[key]]
        # Named only where it is true: a reader that does not know it must refuse it, and needs to know nothing else.
        if not self.scaled_decoding:
            del values["scaled_decoding"]
        return {"schema": self.schema, **values}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelContract:
        """Build a contract from its JSON form; unknown keys are refused, and missing ones but for `scaled_decoding`.

        Raises:
            ContractError: the data are not a contract of this schema.
        """
        schema = data.get("schema") if isinstance(data, Mapping) else None
        if schema != cls.schema:
            raise ContractError(f"contract schema {schema!r}: expected {cls.schema!r}")
        values = {"scaled_decoding": False, **{key: value for key, value in data.items() if key != "schema"}}
        known = {item.name for item in fields(cls)}
        if values.keys() != known:
            raise ContractError(f"contract keys differ: {sorted(values.keys() ^ known)}")
        try:
            values["classes"] = tuple(TileClass(**item) for item in values["classes"])
            values["tile_statistics"] = tuple(TileStatistic(**item) for item in values["tile_statistics"])
            values["input_size"] = tuple(values["input_size"])
            return cls(**values)
        except (TypeError, KeyError) as error:
            raise ContractError(f"contract is malformed: {error}") from error

    def save(self, path: Path) -> None:
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> ModelContract:
        """Read `contract.json`.

        Raises:
            ContractError: missing, not JSON, or not a contract.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ContractError(f"cannot read the contract {path.name}: {error}") from error
        return cls.from_json(data)


def _plain(item: TileClass | TileStatistic) -> dict[str, Any]:
    return {entry.name: getattr(item, entry.name) for entry in fields(item)}
