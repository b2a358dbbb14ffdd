"""Computes each tile's features once, with the frozen extractor, and keeps them on disk."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cervix_engine.tiles.tile import TileFailure, TileSize
from cervix_train.data.augment import Copy
from cervix_train.data.tiles import TileBatch, tile_batches
from cervix_train.features.passes import Extraction, FeaturePass, Wanted, feature_passes
from cervix_train.features.store import TileRecord


@dataclass(frozen=True, slots=True)
class FeatureSet:
    """Features of the usable tiles of a list, in its order.

    Attributes:
        indices: where each usable tile stands in the list.
        vectors: `float32 (N, features)`.
        sizes: decoded sizes.
        mean_rgb: `float64 (N, 3)`, means of the preprocessed pixels, 0-255.
        failures: why a tile has no features, by its position in the list.
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

    def of(self, indices: Collection[int]) -> CopyFeatures:
        """Those of the tiles at `indices`."""
        kept = [number for number, copy in enumerate(self.copies) if copy.index in indices]
        return CopyFeatures(tuple(self.copies[number] for number in kept), self.vectors[kept])


def compute_features(
    paths: Sequence[Path],
    extraction: Extraction,
    *,
    advance: Callable[[int], None],
    copies: Sequence[Copy] = (),
    bf16: Collection[int] = (),
) -> FeatureSet:
    """Features of all tiles: from the cache where they are, else computed and put there batch by batch.

    Args:
        paths: the tiles' files.
        extraction: how they become features.
        advance: told how many more tiles and copies are done.
        copies: altered copies of tiles whose features are wanted too; `index` is a position in `paths`.
        bf16: positions in `paths` of tiles that, with their copies, may be computed in BF16; all others are in FP32.

    Raises:
        OutputError: the cache cannot be read or written.
    """
    tiles = len(paths)
    # A copy is in its tile's pass, so that one runtime computes both.
    learnt = {*bf16, *(tiles + number for number, copy in enumerate(copies) if copy.index in bf16)}
    passes = feature_passes(Wanted.all_of(paths, copies), extraction, bf16=learnt)
    found: dict[int, TileRecord] = {}
    failures: dict[int, TileFailure] = {}
    computed = sum(_run(own, extraction, found, failures, advance=advance) for own in passes)
    advance(len(failures))
    width = int(extraction.backends.extractor.output.shape[-1])
    return _assemble(found, failures, copies, tiles=tiles, computed=computed, width=width)


def _run(
    own: FeaturePass,
    extraction: Extraction,
    found: dict[int, TileRecord],
    failures: dict[int, TileFailure],
    *,
    advance: Callable[[int], None],
) -> int:
    """Fill `found` and `failures`, both by position; gives the number of tiles that were computed."""
    positions, computed = own.wanted.positions, 0
    failed: dict[int, TileFailure] = {}
    with own.store as store, own.backend as backend:

        def known(index: int, digest: str) -> bool:
            record = store.get(digest)
            if record is None:
                return False
            found[positions[index]] = record
            advance(1)
            return True

        batches = tile_batches(
            own.wanted.paths,
            contract=extraction.contract,
            batch_size=extraction.batch_size,
            failures=failed,
            skip=known,
            variants=own.wanted.variants,
        )
        for batch in batches:
            records = _records(batch, backend.infer(batch.pixels)[: len(batch)])
            store.put(dict(zip(batch.digests, records, strict=True)))
            found.update(zip((positions[index] for index in batch.indices), records, strict=True))
            computed += len(batch)
            advance(len(batch))
    failures.update({positions[index]: failure for index, failure in failed.items()})
    return computed


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
    usable = [number for number in range(len(copies)) if tiles + number in found]

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
            tuple(copies[number] for number in usable), stacked([found[tiles + number] for number in usable])
        ),
    )
