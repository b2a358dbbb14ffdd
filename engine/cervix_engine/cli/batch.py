"""`cervix-batch`: a folder of tiles to one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cervix_engine import __version__
from cervix_engine.cli.errors import cervix_errors

if TYPE_CHECKING:
    from cervix_engine.run_report import RunReport
    from cervix_engine.selection import RequestedPrecision

SOME_FAILED = 3


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("tiles", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="Where the table goes, such as preds.csv."
)
@click.option(
    "--model", type=click.Path(path_type=Path), help="The bundle. [default: $CERVIX_MODEL, else models/cervix]"
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16", "int8"]),
    default="auto",
    show_default=True,
    help="auto takes the fastest certified one on this machine, else fp32.",
)
@click.option("--fp16", "precision", flag_value="fp16", help="Short for --precision fp16.")
@click.option("-b", "--batch-size", type=click.IntRange(1, 4096), help="Tiles a batch. [default: 32]")
@click.option("-j", "--workers", type=click.IntRange(1, 256), help="Decode threads. [default: one a core]")
@click.option("--overwrite", is_flag=True, help="Replace a finished table.")
@click.option(
    "--resume/--no-resume", default=True, show_default=True, help="Go on with a partial run; else discard it."
)
@click.option(
    "--retry-failures",
    is_flag=True,
    help="Predict only the failed tiles of a finished table again; its other rows stay as they are.",
)
@click.option(
    "--max-failures",
    default="10%",
    show_default=True,
    metavar="COUNT|SHARE%",
    help="Stop, resumable, when more tiles fail; a share counts from the 1,000th tile on.",
)
@click.option("--hash", "hash_tiles", is_flag=True, help="Put the SHA-256 of each tile's bytes in a column sha256.")
@click.option("--log-file", type=click.Path(path_type=Path), help="Write details there, names of tiles included.")
@click.option("--require-parity", is_flag=True, help="Refuse to run without a certificate (exit 4).")
@click.option("--expect-digest", metavar="SHA256", help="Pin the bundle: refuse any other.")
@click.option("--json", "as_json", is_flag=True, help="Print the run's report as JSON on standard output.")
@click.version_option(__version__)
@cervix_errors
def main(
    tiles: Path,
    out: Path,
    model: Path | None,
    precision: RequestedPrecision,
    batch_size: int | None,
    workers: int | None,
    overwrite: bool,
    resume: bool,
    retry_failures: bool,
    max_failures: str,
    hash_tiles: bool,
    log_file: Path | None,
    require_parity: bool,
    expect_digest: str | None,
    as_json: bool,
) -> int:
    """Predict every tile below the folder TILES: one row per tile, always, in OUT.

    A tile that cannot be predicted gets a row too, with its reason. Exit codes: 0 done, 3 done but some tiles
    failed, 1 failed, 2 wrong usage, 4 no certificate under --require-parity, 130 interrupted.
    """
    from cervix_engine.batch import BatchConfig, predict_folder
    from cervix_engine.budget import FailureBudget
    from cervix_engine.bundle import default_bundle
    from cervix_engine.cli.logs import debug_log
    from cervix_engine.cli.progress import batch_progress
    from cervix_engine.cli.signals import prompt_interruption

    config = BatchConfig(
        tiles=tiles,
        out=out,
        model=model or default_bundle(),
        precision=precision,
        batch_size=batch_size,
        workers=workers,
        overwrite=overwrite,
        resume=resume,
        require_parity=require_parity,
        expect_digest=expect_digest,
        budget=FailureBudget.parse(max_failures),
        hash_tiles=hash_tiles,
        retry_failures=retry_failures,
    )
    with prompt_interruption(), debug_log(log_file), batch_progress() as progress:
        report = predict_folder(config, progress=progress)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2))
    _summarise(report, out)
    return SOME_FAILED if report.failed else 0


def _summarise(report: RunReport, out: Path) -> None:
    backend, bound = report.backend, report.bound_by
    computed = "" if backend.arithmetic == backend.precision else f" computed in {backend.arithmetic}"
    precision = f"{backend.backend} {backend.version} {backend.precision}{computed}"
    certificate = report.provenance.certificate or "none: make one with cervix-export"
    kinds = ", ".join(f"{count} {kind}" for kind, count in report.failures.items())
    failed = f" ({kinds})" if kinds else ""
    resumed = f", {report.resumed} of them before this run went on" if report.resumed else ""
    lines = [
        f"{report.found} tiles: {report.ok} predicted, {report.failed} failed{failed}{resumed}",
        f"table: {out}" + (f"   ({report.ignored} other files ignored)" if report.ignored else ""),
        f"{precision} on {backend.device_class}, certificate: {certificate}",
        f"{report.tiles_per_sec:.1f} tiles/s after {report.provenance.start_s:.1f} s of start; bound by {bound.stage}: "
        f"{bound.threads} thread{'s' * (bound.threads > 1)} sustain {bound.tiles_per_sec:.1f} tiles/s",
    ]
    for line in lines:
        click.echo(line, err=True)
