"""The one start of everything that computes: a bundle's model, loaded here, and shown to answer as training did.

    request ── choose ──> backend ── load ──> sizes ──> memory probe ──> golden tiles ──> Session

`cervix-batch`, its `--dry-run`, `cervix-bench` and Python's `Model` all start here, and nowhere else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from cervix_engine.backends import Backend, BackendInfo, open_backend
from cervix_engine.backends.device import ANY, Device
from cervix_engine.backends.selection import PRECISIONS, RequestedPrecision, replay_golden, select
from cervix_engine.backends.survey import Way
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.bundle.certificate import Certificate
from cervix_engine.bundle.engine_file import read_fingerprint
from cervix_engine.contract import ModelContract, OperatingPoint
from cervix_engine.errors import UsageError
from cervix_engine.files import output_errors, sha256_file
from cervix_engine.run.journal import InputRules, RunIdentity
from cervix_engine.run.record import Provenance
from cervix_engine.run.sizes import require_sizes
from cervix_engine.run.stream.slot import TileBatch
from cervix_engine.run.stream.stats import StreamStats
from cervix_engine.run.stream.steps import TileSteps
from cervix_engine.run.stream.stream import TILE_STEPS, BatchResult, StreamSettings, stream
from cervix_engine.run.tuning import (
    Auto,
    choose_batch_size,
    fit_memory,
    golden_sample,
    require_memory,
    require_memory_to_load,
    sample_of,
)
from cervix_engine.table.coordinates import FOLDER, NAMES
from cervix_engine.table.rows import RowFormat
from cervix_engine.tiles.listing import Listing
from cervix_engine.tiles.sources.source import TileSource
from cervix_engine.values import Pixels, Probabilities

DEFAULT_RULES = InputRules(coords=NAMES, slide=FOLDER)


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """What is asked of a session.

    Attributes:
        bundle: opened, and so its digest pinned where one was asked for.
        precision: `auto`, or the one that must run.
        backend: the runtime that must run it, such as `openvino`; None takes what `precision` chooses.
        device: where it may compute; several GPUs take batches by turns.
        batch_size: tiles a batch; None takes an engine's usual one, else 32, `auto` what a short measurement finds.
        workers: decode processes; `auto` starts one a usable core and keeps those that feed the model.
        require_parity: refuse to run without a certificate.
        keep_batch_size: whether rows of such batches exist already, so that a GPU's memory must not halve them.
        threads: inference threads on the CPU; None takes one a usable core.
        began: when the start began, by `time.perf_counter`.
        meaning: the bundle's contract with another operating point; None takes the bundle's own.
    """

    bundle: Bundle
    precision: RequestedPrecision = "auto"
    backend: str | None = None
    device: Device = ANY
    batch_size: int | Auto | None = None
    workers: int | Auto = "auto"
    require_parity: bool = False
    keep_batch_size: bool = False
    threads: int | None = None
    began: float = field(default_factory=time.perf_counter)
    meaning: ModelContract | None = None

    def __post_init__(self) -> None:
        require_sizes(batch_size=self.batch_size, workers=self.workers)
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision={self.precision!r}: expected one of {', '.join(PRECISIONS)}")

    @property
    def contract(self) -> ModelContract:
        """What the answers mean."""
        return self.meaning or self.bundle.contract


@dataclass(frozen=True, slots=True)
class Chosen:
    """A backend that is not loaded yet, and how it was chosen.

    Attributes:
        backend: constructed; `with` loads it.
        certificate: that covers it; None where none does.
        passed_over: faster ways that were not taken.
        usual_batch: the batch size that it is fastest at; None where nobody measured that.
    """

    backend: Backend
    certificate: Certificate | None = None
    passed_over: tuple[Way, ...] = ()
    usual_batch: int | None = None


Choose = Callable[[SessionRequest], Chosen]


def choose_backend(request: SessionRequest) -> Chosen:
    """The fastest certified way to run what is asked, on this machine.

    Raises:
        CervixError: as `selection.select` and `open_backend`.
    """
    selection = select(
        request.bundle,
        precision=request.precision,
        backend=request.backend,
        device=request.device,
        require_parity=request.require_parity,
    )
    backend = open_backend(
        request.bundle, combination=selection.combination, threads=request.threads, device=request.device
    )
    usual_batch = _usual_batch(request.bundle, selection.combination.engine)
    return Chosen(backend, selection.certificate, selection.passed_over, usual_batch)


def _usual_batch(bundle: Bundle, engine: str | None) -> int | None:
    if engine is None:
        return None
    mark = read_fingerprint(bundle, engine)
    return mark.usual_batch or mark.opt_batch


@dataclass(frozen=True, slots=True)
class Choice:
    """What a session chose, in words that can travel to another machine.

    Attributes:
        info: of its backend.
        contract, batch_size, provenance: as in `Session`.
        certificate, passed_over: as in `Chosen`.
    """

    info: BackendInfo
    contract: ModelContract
    batch_size: int
    provenance: Provenance
    certificate: Certificate | None = None
    passed_over: tuple[Way, ...] = ()


@dataclass(frozen=True, slots=True)
class Session:
    """A loaded model and how it is used. One thread at a time may ask it.

    Attributes:
        contract, backend: of its bundle, with the operating point that is asked for; the backend is loaded.
        batch_size: tiles a batch. Answers can depend on it, so every batch has this size, the last one padded.
        workers: decode processes; None keeps as many as feed the model. No answer depends on them.
        provenance: where its answers come from, and what its start showed and took.
        tiles: those that it was opened on, if any; `listing` where there must be some.
        certificate, passed_over: see `Chosen`.
    """

    contract: ModelContract
    backend: Backend
    batch_size: int
    workers: int | None
    provenance: Provenance
    tiles: Listing | None = None
    certificate: Certificate | None = None
    passed_over: tuple[Way, ...] = ()

    @property
    def listing(self) -> Listing:
        if self.tiles is None:
            raise ValueError("this session was opened without tiles")
        return self.tiles

    @property
    def choice(self) -> Choice:
        """What it computes with."""
        return Choice(
            self.backend.info,
            self.contract,
            self.batch_size,
            self.provenance,
            self.certificate,
            self.passed_over,
        )

    def predict(
        self,
        batches: Iterable[TileBatch],
        *,
        source: TileSource,
        columns: Collection[str] = (),
        stats: StreamStats | None = None,
        steps: TileSteps = TILE_STEPS,
        measure_step: int = 0,
    ) -> Generator[BatchResult, None, None]:
        """Read, decode and infer batches of tiles; closing the generator stops all that works for it.

        Args:
            batches: each of at most `batch_size` tiles.
            source: that their paths are relative to.
            columns: the table's; `sha256` and `quality` among them ask for those notes of each tile.
            stats, steps: as `stream` takes them.
            measure_step: one in how many tiles is measured for drift; 0 for none.

        Raises:
            CervixError: whatever stopped the stream first.
        """
        settings = StreamSettings(
            source,
            self.contract,
            self.batch_size,
            self.workers,
            hash_tiles="sha256" in columns,
            judge_quality="quality" in columns,
            measure_step=measure_step,
        )
        return stream(batches, backend=self.backend, settings=settings, stats=stats or StreamStats(), steps=steps)

    def infer(self, pixels: Pixels) -> Probabilities:
        """Compute `float32 (N, classes)` probabilities of `uint8 (N, height, width, 3)` RGB tiles of the input size.

        In the session's batches, so that answers are those of a run over the same tiles in the same order.

        Raises:
            InferenceError: the runtime failed.
        """
        answers = np.empty((len(pixels), len(self.contract.classes)), np.float32)
        batch = np.zeros((self.batch_size, *self.contract.input_size, 3), np.uint8)
        for start in range(0, len(pixels), self.batch_size):
            count = len(pixels[start : start + self.batch_size])
            batch[:count], batch[count:] = pixels[start : start + count], 0
            answers[start : start + count] = self.backend.infer(batch)[:count]
        return answers

    def identity(
        self, listing: Listing, *, optional: Collection[str] = (), rules: InputRules = DEFAULT_RULES
    ) -> RunIdentity:
        """Everything that rows of `listing` depend on, with these `optional` columns, read by these rules."""
        with output_errors("cannot read the listing"):
            listing_sha256 = sha256_file(listing.path)
        return self.identity_of(listing.source, listing_sha256, optional=optional, rules=rules)

    def identity_of(
        self, source: TileSource, listing_sha256: str, *, optional: Collection[str], rules: InputRules
    ) -> RunIdentity:
        """As `identity`, of a listing with this digest."""
        info, point = self.backend.info, self.contract.operating_point
        return RunIdentity(
            root=source.identity,
            bundle_digest=self.provenance.bundle_digest,
            artefact_sha256=info.artefact_sha256,
            backend=info.backend,
            backend_version=info.version,
            device_class=info.digits_depend_on,
            precision=info.precision,
            threads=info.threads,
            batch_size=self.batch_size,
            columns=RowFormat(self.contract, optional=optional).columns,
            listing_sha256=listing_sha256,
            **asdict(rules),
            **decided_by(point),
        )


def decided_by(point: OperatingPoint | None) -> dict[str, Any]:
    """An operating point as part of what a run is."""
    names = ("abnormal_at", "review_below", "review_within")
    return {name: getattr(point, name) if point else None for name in names}


@contextmanager
def open_session(
    request: SessionRequest, *, list_tiles: Callable[[], Listing] | None = None, choose: Choose = choose_backend
) -> Iterator[Session]:
    """Load a bundle's model, choose its sizes, and prove on golden tiles that it answers as training did.

    Args:
        request: what is asked.
        list_tiles: lists what will be predicted, once it is known that something here can run it and before anything
            is loaded; `auto` sizes are measured on some of these tiles, without them on golden ones.
        choose: gives the backend; tests hand in one of their own.

    Raises:
        CervixError: nothing here runs what is asked, or it does not answer as it must.
    """
    bundle, chosen = request.bundle, choose(request)
    listing = list_tiles() if list_tiles else None

    def sample() -> Sequence[bytes | Pixels]:
        return sample_of(listing) if listing else golden_sample(bundle)

    require_memory_to_load(bundle.root / chosen.backend.info.artefact)
    with chosen.backend as backend:
        batch_size = choose_batch_size(
            backend, sample, contract=bundle.contract, asked=request.batch_size, usual=chosen.usual_batch
        )
        if not request.keep_batch_size:
            batch_size = fit_memory(backend, batch_size, contract=bundle.contract)
        require_memory(backend, batch_size, contract=bundle.contract)
        provenance = Provenance(
            bundle_digest=bundle.digest,
            certificate=chosen.certificate.path_among(bundle.files) if chosen.certificate else None,
            replay_absdiff=replay_golden(bundle, backend, batch_size=batch_size),
            start_s=time.perf_counter() - request.began,
        )
        workers = None if request.workers == "auto" else request.workers
        certified = (chosen.certificate, chosen.passed_over)
        yield Session(request.contract, backend, batch_size, workers, provenance, listing, *certified)
