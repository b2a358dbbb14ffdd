"""`cervix-batch`: a folder of tiles to one table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cervix_engine.cli.batch_options import batch_options
from cervix_engine.cli.shared.command import CervixCommand
from cervix_engine.cli.shared.errors import cervix_errors
from cervix_engine.version import __version__

if TYPE_CHECKING:
    from cervix_engine.run.batch import BatchConfig, RunSetup

INCOMPLETE = 3


@click.command(cls=CervixCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("tiles", type=click.Path(path_type=Path))
@batch_options
@click.version_option(__version__)
@cervix_errors
def main(
    model: Path | None,
    device: str,
    max_failures: str,
    summary: Path | None,
    geojson: Path | None,
    report: Path | None,
    log_file: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    dry_run: bool,
    **asked: Any,
) -> int:
    """Predict every tile below the folder TILES: one row per tile, always, in OUT.

    A tile that cannot be predicted gets a row too, with its reason. Exit codes: 0 done, 3 done but some tiles
    failed or the folder has changed since it was listed, 1 failed, 2 wrong usage, 4 no certificate under
    --require-parity, 5 an engine that was built for another machine, 130 interrupted.
    """
    from cervix_engine.run.stream.fork_server import fork_server

    fork_server()  # before anything else, so that both processes import at the same time
    from cervix_engine.backends.device import Device
    from cervix_engine.bundle.bundle import default_bundle
    from cervix_engine.cli.batch_messages import summary_lines
    from cervix_engine.cli.derived_outputs import DerivedOutputs
    from cervix_engine.cli.shared.events import emit
    from cervix_engine.cli.shared.logs import debug_log, native_lines_logged
    from cervix_engine.cli.shared.signals import prompt_interruption
    from cervix_engine.run.batch import BatchConfig, RunSetup, predict_folder
    from cervix_engine.run.budget import FailureBudget
    from cervix_engine.table.names import escape_name

    context = click.get_current_context()
    context.with_resource(debug_log(log_file))
    context.with_resource(native_lines_logged())
    config = BatchConfig(
        model=model or default_bundle(),
        device=Device.parse(device),
        budget=FailureBudget.parse(max_failures),
        **asked,
    )
    setup = context.find_object(RunSetup) or RunSetup()
    derived = DerivedOutputs(summary, geojson, report)
    derived.check(config)
    if dry_run:
        return _forecast(config, setup, as_json=as_json)
    if as_json:
        emit("start", tiles=escape_name(str(config.tiles)), out=escape_name(str(config.out)))
    with prompt_interruption(), _progress(as_json=as_json, quiet=quiet) as progress:
        done = predict_folder(config, progress=progress, setup=setup)
    if as_json:
        emit("done", report=done.to_json())
    if not quiet:
        for line in summary_lines(done, config.out, verbose=verbose):
            click.echo(line, err=True)
    derived.make(config)
    if not quiet:
        for name, path in derived.targets.items():
            click.echo(f"{name}: {path}", err=True)
    return INCOMPLETE if done.failed or done.folder_changes else 0


def _forecast(config: BatchConfig, setup: RunSetup, *, as_json: bool) -> int:
    from cervix_engine.cli.batch_messages import forecast_lines
    from cervix_engine.cli.shared.events import emit
    from cervix_engine.cli.shared.signals import prompt_interruption
    from cervix_engine.run.dry_run import forecast

    with prompt_interruption():
        expected = forecast(config, choose=setup.choose)
    if as_json:
        emit("forecast", forecast=expected.to_json())
        return 0
    for line in forecast_lines(expected):
        click.echo(line)
    return 0


@contextmanager
def _progress(*, as_json: bool, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    from cervix_engine.cli.shared.events import progress_events
    from cervix_engine.cli.shared.progress import batch_progress
    from cervix_engine.run.batch import no_progress

    if as_json or quiet:
        yield progress_events() if as_json else no_progress
        return
    with batch_progress() as progress:
        yield progress
