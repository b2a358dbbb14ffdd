"""Golden tiles: real encoded tiles with the Keras model's own answers, inside every bundle.

They let a machine without Keras prove that it decodes, resizes and computes as training did. Eight of them
are replayed at every start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.contract import ModelContract
from cervix_engine.errors import ContractError, TileError
from cervix_engine.files import sha256_bytes, write_json
from cervix_engine.tiles.preprocess import preprocess, preprocess_into
from cervix_engine.values import Pixels

SCHEMA = "cervix/golden/1"
INDEX = "golden/golden.json"
REPLAYED = 8
TARGET_COUNT = 512


@dataclass(frozen=True, slots=True)
class GoldenTile:
    """One golden tile.

    Attributes:
        file: path of the encoded tile inside the bundle.
        label: its true class, or None where unknown.
        pixels_sha256: digest of its preprocessed `uint8 (height, width, 3)` pixels.
        probabilities: Keras's answer, one per class, in the contract's order.
    """

    file: str
    label: str | None
    pixels_sha256: str
    probabilities: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class GoldenSet:
    """The golden tiles of one bundle, in order; `reference` is what answered them, such as `keras 3.15.1`, if known."""

    bundle: Bundle
    tiles: tuple[GoldenTile, ...]
    reference: str | None = None

    @classmethod
    def load(cls, bundle: Bundle) -> GoldenSet:
        """Read the index.

        Raises:
            ContractError: the bundle has no golden tiles, or their index is malformed.
        """
        data = bundle.read_json(INDEX, schema=SCHEMA)
        try:
            tiles = tuple(
                GoldenTile(item["file"], item["label"], item["pixels_sha256"], tuple(map(float, item["probabilities"])))
                for item in data["tiles"]
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ContractError(f"{INDEX} is malformed: {error}") from error
        if not tiles:
            raise ContractError(f"{INDEX} lists no tiles")
        classes = len(bundle.contract.classes)
        if any(len(tile.probabilities) != classes for tile in tiles):
            raise ContractError(f"{INDEX}: expected {classes} probabilities a tile, one for each class")
        return cls(bundle, tiles, data.get("reference"))

    def probabilities(self) -> npt.NDArray[np.float32]:
        """Keras's answers, `float32 (N, classes)`."""
        return np.array([tile.probabilities for tile in self.tiles], np.float32)

    def pixels(self, count: int | None = None) -> Pixels:
        """Preprocess the first `count` golden tiles (default: all) to `uint8 (N, height, width, 3)`.

        Raises:
            ContractError: the pixels differ from training's, so this machine decodes or resizes differently.
        """
        chosen = self.tiles[:count]
        out = np.empty((len(chosen), *self.bundle.contract.input_size, 3), np.uint8)
        for position, tile in enumerate(chosen):
            try:
                preprocess_into(out[position], self.bundle.read(tile.file), contract=self.bundle.contract)
            except TileError as error:
                raise ContractError(f"{tile.file} cannot be decoded on this machine: {error}") from error
            if sha256_bytes(out[position].data) != tile.pixels_sha256:
                raise ContractError(
                    f"{tile.file} decodes to other pixels than in training: this machine's image libraries differ, "
                    "so its predictions would too"
                )
        return out


def write_golden(
    root: Path,
    encoded: Sequence[bytes],
    *,
    labels: Sequence[str | None],
    probabilities: npt.NDArray[np.float32],
    contract: ModelContract,
    reference: str | None = None,
) -> None:
    """Write golden tiles and their index into the bundle folder `root`, which the caller then seals.

    Args:
        root: the bundle's folder.
        encoded: the tiles' files, byte for byte.
        labels: true classes, or None where unknown; one per tile.
        probabilities: Keras's answers, `float32 (N, classes)`.
        contract: how the tiles are decoded and resized.
        reference: what gave the probabilities, such as `keras 3.15.1`.
    """
    folder = root / "golden"
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.iterdir():
        stale.unlink()
    tiles = []
    for index, (data, label, answer) in enumerate(zip(encoded, labels, probabilities, strict=True)):
        file = f"golden/{index:05d}.tile"
        (root / file).write_bytes(data)
        digest = sha256_bytes(preprocess(data, contract=contract).data)
        answers = [float(value) for value in answer]
        tiles.append({"file": file, "label": label, "pixels_sha256": digest, "probabilities": answers})
    named = {"reference": reference} if reference else {}
    write_json(root / INDEX, {"schema": SCHEMA, **named, "tiles": tiles})
