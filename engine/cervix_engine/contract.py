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

# Of probabilities in a table, and of what they are compared with.
DECIMALS = 6

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
class OperatingPoint:
    """How a tile's probabilities become decisions: which tiles are called abnormal, and which a person must see.

    Every number has at most six decimal places, as a table's probabilities have, so that a table's own digits decide.

    Attributes:
        abnormal_at: a tile is called abnormal where the abnormal classes' probabilities add up to this, or more.
        review_below: a person must see a tile whose confidence is below this; 0 asks for none.
        review_within: likewise where that sum is closer than this to `abnormal_at`; 0 asks for none.
        sensitivity: the share of abnormal cells that `abnormal_at` was chosen to find; None where nobody chose it so.
    """

    abnormal_at: float
    review_below: float = 0.0
    review_within: float = 0.0
    sensitivity: float | None = None

    def __post_init__(self) -> None:
        for name in ("abnormal_at", "review_below", "review_within", "sensitivity"):
            value = getattr(self, name)
            if name == "sensitivity" and value is None:
                continue
            # `type`: JSON's true is an int to Python. A NaN fails the comparison.
            if type(value) not in (int, float) or not 0 <= value <= 1:
                raise ContractError(f"operating point: {name} {value!r}, expected a number from 0 to 1")
            if round(value, DECIMALS) != value:
                raise ContractError(f"operating point: {name} {value!r}, expected at most {DECIMALS} decimal places")
        if not self.abnormal_at:
            raise ContractError("operating point: abnormal_at 0 calls every tile abnormal, expected more")

    @property
    def review_band(self) -> tuple[float, float]:
        """Between which sums a person must see a tile, neither included; it may reach beyond 0 and 1."""
        low, high = self.abnormal_at - self.review_within, self.abnormal_at + self.review_within
        return round(low, DECIMALS), round(high, DECIMALS)

    @property
    def review_words(self) -> str:
        """Which tiles a person must see; `none` where there can be none."""
        low, high = self.review_band
        by_confidence = [f"confidence below {self.review_below:g}"] if self.review_below else []
        by_sum = [f"probability between {max(0.0, low):g} and {min(1.0, high):g}"] if low < high else []
        return ", or ".join(by_confidence + by_sum) or "none"


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
        operating_point: what a laboratory decides by; None where none was chosen. Then a tile's category is that of its
            most probable class.

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
    operating_point: OperatingPoint | None = None

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
        if self.operating_point is not None:
            self._check_decisions()

    def _check_decisions(self) -> None:
        if "abnormal" not in self.categories or len(self.categories) < 2:
            raise ContractError("operating point: expected classes that are abnormal, and others")
        for item in self.classes:
            alike = [other.name for other in self.classes if other.category == item.name]
            if item.name in get_args(Category) and alike != [item.name]:
                raise ContractError(
                    f"operating point: prob_{item.name} would be both that class and that category: rename the class"
                )

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(item.name for item in self.classes)

    @property
    def categories(self) -> tuple[Category, ...]:
        """The clinical categories that its classes have, from normal to abnormal."""
        return tuple(name for name in get_args(Category) if any(item.category == name for item in self.classes))

    def to_json(self) -> dict[str, Any]:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values["input_size"] = list(self.input_size)
        for key in ("classes", "tile_statistics"):
            values[key] = [_plain(item) for item in values[key]]
        # Named only where they say something: a reader that does not know them must refuse that, and nothing else.
        if not self.scaled_decoding:
            del values["scaled_decoding"]
        del values["operating_point"]
        if self.operating_point is not None:
            values["operating_point"] = _plain(self.operating_point)
        return {"schema": self.schema, **values}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelContract:
        """Build a contract from its JSON form; unknown keys are refused, and missing ones but for the optional two.

        Raises:
            ContractError: the data are not a contract of this schema.
        """
        schema = data.get("schema") if isinstance(data, Mapping) else None
        if schema != cls.schema:
            raise ContractError(f"contract schema {schema!r}: expected {cls.schema!r}")
        optional = {"scaled_decoding": False, "operating_point": None}
        values = {**optional, **{key: value for key, value in data.items() if key != "schema"}}
        known = {item.name for item in fields(cls)}
        if values.keys() != known:
            raise ContractError(f"contract keys differ: {sorted(values.keys() ^ known)}")
        try:
            values["classes"] = tuple(TileClass(**item) for item in values["classes"])
            values["tile_statistics"] = tuple(TileStatistic(**item) for item in values["tile_statistics"])
            values["input_size"] = tuple(values["input_size"])
            if "operating_point" in data:
                values["operating_point"] = OperatingPoint(**data["operating_point"])
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


def _plain(item: TileClass | TileStatistic | OperatingPoint) -> dict[str, Any]:
    return {entry.name: getattr(item, entry.name) for entry in fields(item)}
