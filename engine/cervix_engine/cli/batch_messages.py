"""What `cervix-batch` says of a run: what was chosen for it, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cervix_engine.words import agreeing, counted

if TYPE_CHECKING:
    from cervix_engine.backends.survey import Way
    from cervix_engine.bundle.certificate import Certificate
    from cervix_engine.contract import OperatingPoint
    from cervix_engine.run.assembly.base import Kept
    from cervix_engine.run.dry_run import Forecast
    from cervix_engine.run.record import DecidedTiles, RunRecord
    from cervix_engine.run.session import Choice
    from cervix_engine.run.stream.stats import StageStats

_MINUTE_S, _HOUR_S = 60, 3600
_CERTIFY = ": cervix-parity --certify"

# From this share of flagged tiles on, the input rather than a tile is worth a look.
MANY_FLAGGED = 0.2


def choice_lines(model: Path, choice: Choice) -> Iterator[str]:
    """What computes a run of the bundle `model`, by which certificate, and which faster ways are not taken."""
    info, certificate, digest = choice.info, choice.certificate, choice.provenance.bundle_digest
    certified = f"certified, {_changes(certificate)}" if certificate else f"no certificate{_CERTIFY}"
    yield f"{model} ({digest[:12]}): {info.precision} on {info.backend} {info.version}, {certified}"
    if point := choice.contract.operating_point:
        yield f"operating point: {point_words(point)}"
    for way in choice.passed_over:
        what = f"{way.combination.precision} on {way.combination.backend}"
        yield f"not taken: {what}, {way.tiles_per_sec:.1f} tiles/s when it was certified: {_why_not(way)}"


def worker_line(choice: Choice) -> str:
    """What each worker of a cluster computes on, and in which batches."""
    info = choice.info
    threads = f", {info.threads} thread{'s' * (info.threads > 1)}" if info.gpu is None else ""
    return f"each worker: {info.device_class}{threads}, batches of {choice.batch_size} tiles"


def point_words(point: OperatingPoint) -> str:
    """What an operating point calls abnormal, and what it asks a person to see."""
    chosen = f" (chosen for {point.sensitivity:.1%} of abnormal cells)" if point.sensitivity is not None else ""
    return f"abnormal from a probability of {point.abnormal_at:g} on{chosen}; review: {point.review_words}"


def _changes(certificate: Certificate) -> str:
    parity = certificate.parity
    return f"{len(parity.flips)} of {parity.tiles} decisions changed"


def _why_not(way: Way) -> str:
    if way.certificate and way.certified:
        return f"{_changes(way.certificate)}, so it is asked for by --{way.combination.precision}"
    may_pass = way.refusal is None and way.certificate is not None and way.certificate.passed
    return f"{way.reason}{_CERTIFY if may_pass else ''}"


def news_line(kept: Kept) -> str:
    """What an update found, before it predicts anything."""
    news = kept.changes
    if not news:
        return f"nothing new: the table has all {counted(kept.rows, 'tile')} as they are"
    rows = counted(kept.rows, "row is", "rows are")
    return f"{news.added} new, {news.changed} changed, {news.removed} gone; {rows} kept"


def summary_lines(record: RunRecord, out: Path, *, verbose: bool) -> Iterator[str]:
    """The run in a few lines: its books, its table, what computed it, what bound it, and what its tiles are like."""
    from cervix_engine.drift.words import UNWATCHED, drift_lines

    backend = record.backend
    computed = "" if backend.arithmetic == backend.precision else f" computed in {backend.arithmetic}"
    precision = f"{backend.backend} {backend.version} {backend.precision}{computed}"
    certificate = record.provenance.certificate or f"none{_CERTIFY}"
    kinds = ", ".join(f"{count} {kind}" for kind, count in record.failures.items())
    failed = f" ({kinds})" if kinds else ""
    resumed = f", {record.resumed} of them before this run went on" if record.resumed else ""
    yield f"{counted(record.found, 'tile')}: {record.ok} predicted, {record.failed} failed{failed}{resumed}"
    if record.decided:
        yield _decided_line(record.decided, record.ok)
    yield f"table: {out}{_ignored(record)}"
    yield f"{precision} on {backend.device_class}, certificate: {certificate}"
    if not record.stages:
        return  # an update that only dropped rows
    if record.tiles_per_sec > 0 and record.bound_by.tiles_per_sec > 0:  # else no tile was left to be predicted
        after = f"{record.tiles_per_sec:.1f} tiles/s after {record.provenance.start_s:.1f} s of start"
        yield f"{after}; {bound_sentence(record.bound_by, record.stages)}"
    if verbose:
        for stage in record.stages:
            times = f"busy {stage.busy_s:.2f} s, waiting {stage.waiting_s:.2f} s"
            yield f"  {stage.stage:<8} {stage.threads} {_who(stage)}, {times}, {stage.busy_share:.0%} busy"
    if changes := record.folder_changes:
        yield (
            f"warning: since the folder was listed, {counted(changes.added, 'tile was', 'tiles were')} added, "
            f"which this table does not have, and {counted(changes.removed, 'was', 'were')} removed"
        )
    if record.flagged > MANY_FLAGGED * record.ok:
        yield (
            f"warning: {record.flagged} of {record.ok} predicted tiles ({record.flagged / record.ok:.0%}) look unlike "
            "what the model was trained on: see the column quality"
        )
    if record.drift:
        yield from drift_lines(record.drift)
    elif verbose:
        yield f"drift: {UNWATCHED}"


def _decided_line(decided: DecidedTiles, predicted: int) -> str:
    """What the operating point made of the predicted tiles of the table."""
    share = f" ({decided.abnormal / predicted:.1%})" if predicted else ""
    return (
        f"operating point: {decided.abnormal} of {counted(predicted, 'predicted tile')} called abnormal{share}, "
        f"{decided.review} for a person to review"
    )


def bound_sentence(bound: StageStats, stages: Iterable[StageStats]) -> str:
    """What bound a run, and what those that the tiles met before or after it could have done."""
    able = {stage.stage: stage for stage in stages}
    decode, infer = able["decode"], able["infer"]
    workers = f"{decode.threads} {_who(decode)}"
    model = f"the model could do {_number(infer.tiles_per_sec)}"
    decoding = f"{workers} could decode {_number(decode.tiles_per_sec)}"
    sustained = f"{agreeing(bound.threads, 'sustains', 'sustain')} {_number(bound.tiles_per_sec)} tiles/s"
    if bound.stage == "decode":
        return f"bound by decode: {workers} {sustained}, {model}"
    if bound.stage == "infer":
        return f"bound by the model: it {sustained}, {decoding}"
    return f"bound by {_NAMES[bound.stage]}: it {sustained}, {model}, {decoding}"


_NAMES = {"list": "listing", "write": "writing", "parent": "the Python of the run's own process"}


def _who(stage: StageStats) -> str:
    noun = "worker" if stage.stage == "decode" else "thread"
    return agreeing(stage.threads, noun, f"{noun}s")


def _number(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def kept_words(out: Path) -> str:
    """How much of a run that is interrupted is kept, as the start of a line; empty where none has begun."""
    from cervix_engine.run.assembly.run_folder import RunFolder
    from cervix_engine.run.journal import kept_tiles

    kept = kept_tiles(RunFolder(out).journal)
    return f"{kept[0]} of {kept[1]} tiles are kept; " if kept else ""


def forecast_lines(forecast: Forecast, previews: Path | None) -> Iterator[str]:
    """What a run would be, in a few lines; `previews` is the folder of pictures that were asked for with it."""
    kept = f"; {counted(forecast.kept, 'row is', 'rows are')} kept" if forecast.kept else ""
    yield (
        f"{counted(forecast.found, 'tile')} to predict{kept}{_ignored(forecast)}"
        if kept
        else f"{counted(forecast.found, 'tile')}, and as many rows{_ignored(forecast)}"
    )
    if not forecast.sampled:
        yield "nothing was written: leave --dry-run out to run it"
        return
    failed = f", {forecast.failed} of them failed" if forecast.failed else ""
    sampled = counted(forecast.sampled, "sampled tile")
    yield f"{forecast.runs}: {forecast.tiles_per_sec:.1f} tiles/s over {sampled}{failed}"
    yield f"about {duration(forecast.seconds)}, of which {forecast.start_s:.1f} s to start"
    yield f"about {forecast.peak_bytes / 1e6:,.0f} MB of memory, {forecast.table_bytes / 1e6:,.1f} MB of table as CSV"
    written = f"nothing but pictures in {previews} was" if previews else "nothing was"
    yield f"{written} written: leave --dry-run out to run it"


def _ignored(of: RunRecord | Forecast) -> str:
    from cervix_engine.tiles.discover import ignored_words

    by_reason = f": {ignored_words(of.ignored_by)}" if of.ignored_by else ""
    return f"   ({counted(of.ignored, 'other file')} ignored{by_reason})" if of.ignored else ""


def duration(seconds: float) -> str:
    """Such as `42 s`, `3 min 20 s` or `5 h 10 min`."""
    if seconds < _MINUTE_S:
        return f"{seconds:.0f} s"
    if seconds < _HOUR_S:
        return f"{seconds // _MINUTE_S:.0f} min {seconds % _MINUTE_S:.0f} s"
    return f"{seconds // _HOUR_S:.0f} h {seconds % _HOUR_S // _MINUTE_S:.0f} min"
