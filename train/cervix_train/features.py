"""Computes each tile's features once, with the frozen extractor, and keeps them on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cervix_engine.contract import ModelContract
from cervix_engine.errors import TileError
from cervix_engine.files import sha256_bytes
from cervix_engine.preprocess import read_tile
from cervix_engine.tiles import TileFailure, TileSize
from cervix_train.augment import ORIGINAL, Copy, Variant
from cervix_train.feature_runtime import (
    RACE_TILES,
    FeatureRuntime,
    KerasRuntime,
    choose_runtime,
    keras_name,
    runtime_names,
)
from cervix_train.feature_store import FeatureStore, TileRecord
from cervix_train.keras_runtime import KerasModel, load_keras
from cervix_train.network import extractor_digest
from cervix_train.tiles import TileBatch, tile_batches


@dataclass(frozen=True, slots=True)
class FeatureSet:
    """Features of the usable tiles of a list, in its order.

    Attributes:
        indices: where each usable tile stands in the list.
        vectors: `float32 (N, features)`.
        sizes: decoded sizes.
        mean_rgb: `float64 (N, 3)`, means of the preprocessed pixels, 0-255.
        failures: why a tile has no features, by its place in the list.
        computed: how many tiles and copies the extractor was run on; the others were on disk.
        copies: features of altered copies of some of these tiles.
    """

    indices: npt.NDArray[np.intp]
    vectors: npt.NDArray[np.float32]
    sizes: tuple[TileSize, ...]
    mean_rgb: npt.NDArray[np.float64]
    failures: dict[int, TileFailure]
    computed: int
    copies: CopyFeatures


@dataclass(frozen=True, slots=True)
class CopyFeatures:
    """Altered copies and their features, `float32 (N, features)`."""

    copies: tuple[Copy, ...]
    vectors: npt.NDArray[np.float32]


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/cervix/features`, else `~/.cache/cervix/features`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "cervix" / "features"


def cache_keys(extractor: KerasModel, contract: ModelContract) -> dict[str, str]:
    """For each runtime, hex SHA-256 of all that decides a tile's features, but for the tile itself.

    Versions are part of it: another one may compute the same layers a little differently.
    """
    parts: dict[str, Any] = {
        "extractor": extractor_digest(extractor),
        "keras": load_keras().__version__,
        "input_size": list(contract.input_size),
        "channel_order": contract.channel_order,
        "interpolation": contract.interpolation,
        "exif_policy": contract.exif_policy,
    }
    # Keras's key names no runtime: stores that are older than the choice of one stay good.
    named = {name: parts if name == keras_name() else {**parts, "runtime": name} for name in runtime_names()}
    return {name: sha256_bytes(json.dumps(own, sort_keys=True).encode()) for name, own in named.items()}


def compute_features(
    paths: Sequence[Path],
    *,
    extractor: KerasModel,
    contract: ModelContract,
    cache: Path,
    batch_size: int,
    advance: Callable[[int], None],
    copies: Sequence[Copy] = (),
) -> FeatureSet:
    """Features of all tiles: from the cache where they are, else computed and put there batch by batch.

    Args:
        paths: the tiles' files.
        extractor: frozen; `uint8 (N, H, W, 3)` → `float32 (N, features)`.
        contract: how tiles are decoded and resized.
        cache: folder of the feature stores.
        batch_size: tiles per call of the extractor.
        advance: told how many more tiles and copies are done.
        copies: altered copies of tiles whose features are wanted too; `index` is a place in `paths`.

    Raises:
        OutputError: the cache cannot be read or written.
    """
    # One pass, so that copies are computed by the runtime that their tiles were computed by.
    tiles = len(paths)
    variants = [ORIGINAL] * tiles + [copy.variant for copy in copies]
    paths = [*paths, *(paths[copy.index] for copy in copies)]
    width = int(extractor.output.shape[-1])
    stores = {name: FeatureStore(cache, key=key, width=width) for name, key in cache_keys(extractor, contract).items()}
    name, runtime = _choose(extractor, paths, variants, stores, contract)
    found: dict[int, TileRecord] = {}
    failures: dict[int, TileFailure] = {}
    computed = 0
    with stores[name] as store:

        def known(index: int, digest: str) -> bool:
            record = store.get(digest)
            if record is None:
                return False
            found[index] = record
            advance(1)
            return True

        batches = tile_batches(
            paths, contract=contract, batch_size=batch_size, failures=failures, skip=known, variants=variants
        )
        for batch in batches:
            records = _records(batch, runtime(batch.pixels)[: len(batch)])
            store.put(dict(zip(batch.digests, records, strict=True)))
            found.update(zip(batch.indices, records, strict=True))
            computed += len(batch)
            advance(len(batch))
    advance(len(failures))
    return _assemble(found, failures, copies, tiles=tiles, computed=computed, width=width)


def _choose(
    extractor: KerasModel,
    paths: Sequence[Path],
    variants: Sequence[Variant],
    stores: dict[str, FeatureStore],
    contract: ModelContract,
) -> tuple[str, FeatureRuntime]:
    """The store that is to serve the tiles, by its runtime's name, and what computes those that it lacks."""
    digests = _digests(paths, variants)
    held = {name: store.held(digests) for name, store in stores.items()}
    most = max(held, key=lambda name: len(held[name]))
    missing = tile_batches(
        paths,
        contract=contract,
        batch_size=RACE_TILES,
        failures={},
        skip=lambda _index, digest: digest in held[most],
        variants=variants,
    )
    sample = next(missing, None)
    if sample is None:
        return most, KerasRuntime(extractor)
    counts = {name: sum(digest in found for digest in digests) for name, found in held.items()}
    runtime = choose_runtime(extractor, held=counts, tiles=len(paths), sample=sample.pixels[: len(sample)])
    return runtime.name, runtime


def _digests(paths: Sequence[Path], variants: Sequence[Variant]) -> list[str]:
    digests = []
    for path, variant in zip(paths, variants, strict=True):
        # What cannot be read is named by the pass itself.
        with suppress(TileError):
            digests.append(variant.key(sha256_bytes(read_tile(path))))
    return digests


def _records(batch: TileBatch, vectors: npt.NDArray[np.float32]) -> list[TileRecord]:
    means = batch.pixels[: len(batch)].mean(axis=(1, 2), dtype=np.float64)
    return [
        TileRecord(np.asarray(vector, np.float32), size, (float(mean[0]), float(mean[1]), float(mean[2])))
        for vector, size, mean in zip(vectors, batch.sizes, means, strict=True)
    ]


def _assemble(
    found: dict[int, TileRecord],
    failures: dict[int, TileFailure],
    copies: Sequence[Copy],
    *,
    tiles: int,
    computed: int,
    width: int,
) -> FeatureSet:
    indices = sorted(index for index in found if index < tiles)
    records = [found[index] for index in indices]
    usable = [place for place in range(len(copies)) if tiles + place in found]

    def stacked(records: Sequence[TileRecord]) -> npt.NDArray[np.float32]:
        return np.array([record.features for record in records], np.float32).reshape(-1, width)

    return FeatureSet(
        indices=np.array(indices, np.intp),
        vectors=stacked(records),
        sizes=tuple(record.size for record in records),
        mean_rgb=np.array([record.mean_rgb for record in records], np.float64).reshape(-1, 3),
        # A copy fails where its tile does, which is said once.
        failures={index: failure for index, failure in failures.items() if index < tiles},
        computed=computed,
        copies=CopyFeatures(
            tuple(copies[place] for place in usable), stacked([found[tiles + place] for place in usable])
        ),
    )
