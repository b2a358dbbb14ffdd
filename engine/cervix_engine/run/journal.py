"""The journal of a run that is not finished: which batches are safely on disk, and under which identity.

One JSON object a line, each appended and fsynced: `{"check": …, "entry": …}`. The first entry is the identity,
then one a shard, last the digest of the assembled table. A line torn by a crash is the end of the journal, and one
that fails its check says nothing: what it would have said is simply done again.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cervix_engine.backends.device import ComputesOn
from cervix_engine.contract import OperatingPoint
from cervix_engine.errors import OutputError, ResumeMismatchError
from cervix_engine.files import atomic_path, output_errors, sha256_bytes
from cervix_engine.run.assembly.part import Part
from cervix_engine.tiles.listing import Listing
from cervix_engine.values import Precision

SCHEMA = "cervix/journal/1"


@dataclass(frozen=True, slots=True)
class InputRules:
    """How a run reads its folder. The defaults are what runs did before there was a choice.

    Attributes:
        coords: how names say where tiles lie, as `locations.identified` gives it; None in runs that wrote no places.
        slide: how slides are named, as `locations.slides_identified` gives it; None by the bare name of the folder.
        follow_links: whether links that lead out of the folder are followed.
        grid: how whole slides are cut, as `GridRules.text`; None where tiles are files.
    """

    coords: str | None = None
    slide: str | None = None
    follow_links: bool = False
    grid: str | None = None


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """Everything that a row can depend on. Equal identities give byte-identical tables.

    Attributes:
        retry_of: the SHA-256 of the finished table whose failed rows are predicted again, None for all other runs.
        coords, slide, follow_links: as in `InputRules`.
        abnormal_at, review_below, review_within: as in `OperatingPoint`; None where the rows decide nothing.
        update_of: the SHA-256 of the finished table that is brought up to date, None for all other runs.
        shard: which part of the listing the run predicts, such as `3/8`, see `Part`; None for all of it.
    """

    root: str
    bundle_digest: str
    artefact_sha256: str
    backend: str
    backend_version: str
    device_class: str
    precision: Precision
    threads: int
    batch_size: int
    columns: tuple[str, ...]
    listing_sha256: str
    retry_of: str | None = None
    coords: str | None = None
    slide: str | None = None
    follow_links: bool = False
    grid: str | None = None
    abnormal_at: float | None = None
    review_below: float | None = None
    review_within: float | None = None
    update_of: str | None = None
    shard: str | None = None

    @property
    def operating_point(self) -> OperatingPoint | None:
        """What its rows decide by; None where they decide nothing."""
        if self.abnormal_at is None or self.review_below is None or self.review_within is None:
            return None
        return OperatingPoint(self.abnormal_at, self.review_below, self.review_within)

    @property
    def base_sha256(self) -> str | None:
        """Of the finished table that some of the new table's rows are kept from."""
        return self.retry_of or self.update_of

    def batches(self, listed: int) -> range:
        """Which batches of so many listed tiles the run predicts.

        Raises:
            UsageError: there are too few for so many shards.
        """
        count = -(-listed // self.batch_size)
        return Part.parse(self.shard).batches(count) if self.shard else range(count)

    def tiles(self, listed: int) -> range:
        """Which of so many listed tiles the run predicts; raises as `batches`."""
        batches, size = self.batches(listed), self.batch_size
        return range(batches.start * size, min(listed, batches.stop * size))

    @property
    def rules(self) -> InputRules:
        return InputRules(self.coords, self.slide, self.follow_links, self.grid)

    @property
    def computes_on(self) -> ComputesOn:
        """Where its rows are computed: their class of device says it, whichever runtimes are known today."""
        return "cuda" if self.device_class.startswith("cuda-") else "cpu"

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RunIdentity:
        return cls(**{**data, "columns": tuple(data["columns"])})

    def check(
        self,
        other: RunIdentity,
        *,
        what: str = "a partial run lies there",
        remedy: str = "run it as before, or pass --no-resume to discard it",
    ) -> None:
        """Raises ResumeMismatchError that names the first difference to `what` has this identity, and the remedy."""
        for item in fields(self):
            stored, now = getattr(self, item.name), getattr(other, item.name)
            if stored != now:
                raise ResumeMismatchError(f"{what} with {item.name} {stored}, this one has {now}: {remedy}")


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows of consecutive whole batches, in a file of their own.

    Attributes:
        first_batch, batches: which ones.
        ok: predicted tiles.
        failures: failed tiles by kind.
        sha256: of the shard's file.
        flagged: predicted tiles with a flag in their column `quality`.
        drift: by slide, what its measured tiles add, as `DriftWatch.sums` gives it; None where none were measured.
    """

    first_batch: int
    batches: int
    ok: int
    failures: dict[str, int]
    sha256: str
    flagged: int = 0
    drift: dict[str, list[int]] | None = None

    @property
    def file(self) -> str:
        return f"shard-{self.first_batch:09d}.csv"

    @property
    def rows(self) -> int:
        return self.ok + sum(self.failures.values())

    @property
    def indices(self) -> range:
        """Of its batches."""
        return range(self.first_batch, self.first_batch + self.batches)


@dataclass(slots=True)
class Journal:
    """An open journal; `shards` and `assembled` are what its lines say so far."""

    path: Path
    identity: RunIdentity
    found: int
    ignored: int
    ignored_by: dict[str, int]
    shards: list[Shard]
    assembled: str | None = None

    @classmethod
    def create(cls, path: Path, *, identity: RunIdentity, listing: Listing) -> Journal:
        """Start a journal; when this returns its first line survives a power cut."""
        found, ignored, ignored_by = len(identity.tiles(listing.found)), listing.ignored, dict(listing.ignored_by)
        header = {"schema": SCHEMA, "found": found, "ignored": ignored, "ignored_by": ignored_by}
        with output_errors("cannot start the journal"), atomic_path(path) as temporary:
            temporary.write_bytes(_line({**header, "identity": asdict(identity)}))
        return cls(path, identity, found, ignored, ignored_by, [])

    @classmethod
    def adopt(cls, path: Path, identity: RunIdentity, *, found: int, assembled: str) -> Journal:
        """Start the journal of a table that is assembled already."""
        journal = cls(path, identity, found, 0, {}, [], assembled)
        header = {"schema": SCHEMA, "found": found, "ignored": 0, "ignored_by": {}, "identity": asdict(identity)}
        with output_errors("cannot start the journal"), atomic_path(path) as temporary:
            temporary.write_bytes(_line(header) + _line({"assembled": assembled}))
        return journal

    @classmethod
    def load(cls, path: Path) -> Journal | None:
        """Read a journal as far as it is whole; None where there is none.

        Raises:
            OutputError: it cannot be read, or its first line is not this program's.
        """
        with output_errors("cannot read the journal of the partial run"):
            if not path.exists():
                return None
            *lines, torn = path.read_bytes().split(b"\n")
        header = _entry(lines[0]) if lines else None
        if header is None or header.get("schema") != SCHEMA:
            raise OutputError("the partial run's journal is broken or another version's: discard it with --no-resume")
        identity, ignored_by = RunIdentity.from_json(header["identity"]), header.get("ignored_by", {})
        journal = cls(path, identity, header["found"], header["ignored"], ignored_by, [])
        journal._replay(lines[1:])
        if torn:
            journal._cut_torn_line(len(torn))
        return journal

    @property
    def ok(self) -> int:
        """Predicted tiles in all shards."""
        return sum(shard.ok for shard in self.shards)

    @property
    def flagged(self) -> int:
        """Predicted tiles with a flag of `quality.py`."""
        return sum(shard.flagged for shard in self.shards)

    @property
    def failures(self) -> Counter[str]:
        """Failed tiles by kind."""
        total: Counter[str] = Counter()
        for shard in self.shards:
            total.update(shard.failures)
        return total

    @property
    def tiles(self) -> int:
        return self.ok + self.failures.total()

    def batches(self) -> frozenset[int]:
        """The batches that shards hold."""
        return frozenset(index for shard in self.shards for index in shard.indices)

    def append(self, shard: Shard) -> None:
        """Record a shard whose file is already durable."""
        entry = asdict(shard)
        if shard.drift is None:  # so that earlier versions can read it
            del entry["drift"]
        self._append_line(entry)
        self.shards.append(shard)

    def mark_assembled(self, sha256: str) -> None:
        """Record the finished table's digest, just before it is renamed into place."""
        self._append_line({"assembled": sha256})
        self.assembled = sha256

    def _replay(self, lines: list[bytes]) -> None:
        shards: dict[int, Shard] = {}
        for line in lines:
            entry = _entry(line)
            if entry is None:
                continue  # a damaged line: what it said is done again
            if "assembled" in entry:
                self.assembled = entry["assembled"]
                continue
            shard = Shard(**entry)
            # A shard that was broken and made again is listed twice; the later line holds.
            shards[shard.first_batch] = shard
        self.shards = list(shards.values())

    def _append_line(self, entry: dict[str, Any]) -> None:
        with output_errors("cannot write the journal"), self.path.open("ab") as file:
            file.write(_line(entry))
            file.flush()
            os.fsync(file.fileno())

    def _cut_torn_line(self, length: int) -> None:
        with output_errors("cannot mend the journal"), self.path.open("rb+") as file:
            file.truncate(self.path.stat().st_size - length)
            os.fsync(file.fileno())


def kept_tiles(path: Path) -> tuple[int, int] | None:
    """(Tiles whose rows are safe, all tiles) by a journal that may still be written; None where there is none."""
    try:
        header, *entries = [_entry(line) for line in path.read_bytes().split(b"\n")]
    except OSError:
        return None
    if header is None:
        return None
    # A shard that was made again is listed twice.
    shards = {entry["first_batch"]: entry for entry in entries if entry and "first_batch" in entry}
    return sum(shard["ok"] + sum(shard["failures"].values()) for shard in shards.values()), header["found"]


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps({"check": _check(entry), "entry": entry}).encode() + b"\n"


def _entry(line: bytes) -> dict[str, Any] | None:
    """What a line says, or None where it is not as it was written."""
    try:
        held = json.loads(line)
        entry: dict[str, Any] = held["entry"]
        return entry if held["check"] == _check(entry) else None
    except (ValueError, KeyError, TypeError):
        return None


def _check(entry: dict[str, Any]) -> str:
    return sha256_bytes(json.dumps(entry).encode())[:16]
