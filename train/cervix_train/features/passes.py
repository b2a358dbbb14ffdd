"""Which store and backend serve which tiles: one pass in FP32; or two, where what is learnt from may be in BF16."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cervix_engine.backends import Backend
from cervix_engine.contract import ModelContract
from cervix_engine.errors import TileError
from cervix_engine.files import sha256_bytes
from cervix_engine.tiles.preprocess import read_tile
from cervix_engine.values import Pixels, Precision
from cervix_keras.start import load_keras
from cervix_train.data.augment import ORIGINAL, Copy, Variant
from cervix_train.data.tiles import tile_batches
from cervix_train.features.backends import ExtractorBackends
from cervix_train.features.choice import RACE_TILES, Rules, Workload, choose_backend, choose_bf16
from cervix_train.features.extractor import extractor_digest
from cervix_train.features.store import FeatureStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Extraction:
    """How tiles become features.

    Attributes:
        backends: what can compute a frozen extractor's features.
        contract: how tiles are decoded and resized.
        cache: folder of the feature stores.
        batch_size: tiles per call of the extractor.
        rules: when which backend computes.
    """

    backends: ExtractorBackends
    contract: ModelContract
    cache: Path
    batch_size: int
    rules: Rules = field(default_factory=Rules)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Tiles and copies whose features are wanted.

    Attributes:
        positions: where each stands among all tiles, which copies follow.
        paths: their files.
        variants: how each is altered.
    """

    positions: tuple[int, ...]
    paths: tuple[Path, ...]
    variants: tuple[Variant, ...]

    @classmethod
    def all_of(cls, paths: Sequence[Path], copies: Sequence[Copy]) -> Wanted:
        """Every tile, and altered copies of some."""
        return cls(
            tuple(range(len(paths) + len(copies))),
            (*paths, *(paths[copy.index] for copy in copies)),
            (*([ORIGINAL] * len(paths)), *(copy.variant for copy in copies)),
        )

    def subset(self, positions: Collection[int], *, within: bool) -> Wanted:
        """Those that stand within `positions`, or those that do not."""
        kept = [number for number, position in enumerate(self.positions) if (position in positions) is within]
        return Wanted(
            tuple(self.positions[number] for number in kept),
            tuple(self.paths[number] for number in kept),
            tuple(self.variants[number] for number in kept),
        )


@dataclass(frozen=True, slots=True)
class FeaturePass:
    """Which store serves some tiles and copies, and the backend, not yet opened, that computes those that it lacks."""

    wanted: Wanted
    store: FeatureStore
    backend: Backend


def feature_passes(wanted: Wanted, extraction: Extraction, *, bf16: Collection[int]) -> list[FeaturePass]:
    """One pass in FP32; or two, where those at the positions `bf16` can be had in BF16.

    Args:
        wanted: all tiles and copies.
        extraction: how they become features.
        bf16: positions of those that are only learnt from. All others are in FP32.

    Raises:
        OutputError: a store cannot be read.
    """
    stores = _Stores(extraction)
    learnt = stores.in_bf16(wanted.subset(bf16, within=True)) if bf16 else None
    if learnt is None:
        return [stores.in_fp32(wanted)]
    return [stores.in_fp32(wanted.subset(bf16, within=False)), learnt]


def cache_keys(backends: ExtractorBackends, contract: ModelContract, precision: Precision = "fp32") -> dict[str, str]:
    """For each backend of a precision, hex SHA-256 of all that decides a tile's features, but for the tile itself.

    Versions are part of it: another one may compute the same layers a little differently.
    """
    facts: dict[str, Any] = {
        "extractor": extractor_digest(backends.extractor),
        "keras": load_keras().__version__,
        "input_size": list(contract.input_size),
        "channel_order": contract.channel_order,
        "interpolation": contract.interpolation,
        "exif_policy": contract.exif_policy,
        **({"scaled_decoding": True} if contract.scaled_decoding else {}),
    }
    # Keras's key names no runtime, and no key what is not chosen: stores that are older than the choices stay good.
    named = {
        name: facts if name == backends.keras else {**facts, "runtime": name} for name in backends.names(precision)
    }
    return {name: sha256_bytes(json.dumps(own, sort_keys=True).encode()) for name, own in named.items()}


class _Stores:
    """The stores of one extractor, and the choice of the one that is to serve some tiles."""

    def __init__(self, extraction: Extraction) -> None:
        self._extraction = extraction
        self._backends = extraction.backends

    def in_fp32(self, wanted: Wanted) -> FeaturePass:
        stores = self._of("fp32")
        name, counts, sample = self._fullest(stores, wanted, _digests(wanted))
        if sample is None:
            return self._pass(wanted, stores, name, computed_by=self._backends.keras)
        workload = Workload(counts, len(wanted.positions), sample)
        return self._pass(wanted, stores, choose_backend(self._backends, workload, self._extraction.rules))

    def in_bf16(self, wanted: Wanted) -> FeaturePass | None:
        """None where BF16 cannot be had. A store of FP32 that holds all of them serves them: nothing is faster."""
        digests = _digests(wanted)
        stores = self._of("fp32")
        name, counts, sample = self._fullest(stores, wanted, digests)
        if sample is not None:
            stores = self._of("bf16")
            name, counts, sample = self._fullest(stores, wanted, digests)
        if sample is None:
            log.info("the features of training tiles are those of %s, all in its store already", name)
            return self._pass(wanted, stores, name, computed_by=self._backends.keras)
        workload = Workload(counts, len(wanted.positions), sample)
        chosen = choose_bf16(self._backends, workload, self._extraction.rules)
        return self._pass(wanted, stores, chosen) if chosen else None

    def _pass(
        self, wanted: Wanted, stores: Mapping[str, FeatureStore], name: str, *, computed_by: str | None = None
    ) -> FeaturePass:
        return FeaturePass(wanted, stores[name], self._backends.backend(computed_by or name))

    def _of(self, precision: Precision) -> dict[str, FeatureStore]:
        """The store of each backend of a precision, by its name."""
        keys = cache_keys(self._backends, self._extraction.contract, precision)
        width = int(self._backends.extractor.output.shape[-1])
        return {name: FeatureStore(self._extraction.cache, key=key, width=width) for name, key in keys.items()}

    def _fullest(
        self, stores: Mapping[str, FeatureStore], wanted: Wanted, digests: Sequence[str]
    ) -> tuple[str, dict[str, int], Pixels | None]:
        """Which store holds most tiles, how many each holds, and the first few that the fullest lacks, if any."""
        held = {name: store.held(digests) for name, store in stores.items()}
        most = max(held, key=lambda name: len(held[name]), default="")
        counts = {name: sum(digest in found for digest in digests) for name, found in held.items()}
        return most, counts, self._missing(wanted, held.get(most, ()))

    def _missing(self, wanted: Wanted, held: Collection[str]) -> Pixels | None:
        batches = tile_batches(
            wanted.paths,
            contract=self._extraction.contract,
            batch_size=RACE_TILES,
            failures={},
            skip=lambda _index, digest: digest in held,
            variants=wanted.variants,
        )
        first = next(batches, None)
        return first.pixels[: len(first)] if first else None


def _digests(wanted: Wanted) -> list[str]:
    digests = []
    for path, variant in zip(wanted.paths, wanted.variants, strict=True):
        # What cannot be read is named by the pass itself.
        with suppress(TileError):
            digests.append(variant.key(sha256_bytes(read_tile(path))))
    return digests
