"""`cervix-batch`: tiles to one table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from cervix_engine.cli.batch_options import batch_options
from cervix_engine.cli.shared.command import CervixCommand
from cervix_engine.cli.slide_options import of_whole_slides

if TYPE_CHECKING:
    from cervix_engine.cli.derived_outputs import DerivedOutputs
    from cervix_engine.run.assembly.base import Kept
    from cervix_engine.run.batch import BatchConfig, RunSetup
    from cervix_engine.run.session import Choice

INCOMPLETE = 3


@click.command(cls=CervixCommand)
@click.argument("tiles", type=click.Path(), metavar="TILES")
@batch_options
def main(
    model: Path | None, device: str, max_failures: str, log_file: Path | None, dry_run: bool, **options: Any
) -> int:
    """Predict every tile of TILES: one row per tile, always, in OUT.

    TILES is a folder, a list (tiles.csv, tiles.txt, or - for standard input), an archive (.tar, .zip), an address
    (s3://bucket/tiles) or a whole slide. A tile that cannot be predicted gets a row too, with its reason. Exit codes:
    0 done, 3 done but some tiles failed or TILES has changed since it was listed, 1 failed, 2 wrong usage, 4 no
    certificate under --require-parity, 5 an engine that was built for another machine, 130 interrupted.
    """
    from cervix_engine.run.stream.fork_server import fork_server

    fork_server()  # before anything else, so that both processes import at the same time
    from dataclasses import replace

    from cervix_engine.backends.device import Device
    from cervix_engine.bundle.bundle import default_bundle
    from cervix_engine.cli.derived_outputs import DerivedOutputs
    from cervix_engine.cli.shared.logs import command_line
    from cervix_engine.cli.shared.surroundings import scratch_in
    from cervix_engine.run.batch import BatchConfig
    from cervix_engine.run.budget import FailureBudget

    _log_to(log_file)
    said = Said(**{name: options.pop(name) for name in ("as_json", "quiet", "verbose")})
    ray = ClusterAsked(options.pop("ray"), options.pop("ray_cpus"))
    asked = DerivedOutputs(**{name: options.pop(name) for name in ("summary", "geojson", "report")})
    config = BatchConfig(
        model=model or default_bundle(),
        device=Device.parse(device),
        budget=FailureBudget.parse(max_failures),
        command=command_line(),
        **(options | of_whole_slides(options)),
    )
    derived = asked.remaining(config)
    config = replace(config, keep_finished=bool(derived.targets))
    scratch_in(config.out.absolute().parent)
    derived.check(config)
    setup = _on_cluster(ray, _told_to(derived, said, config, ray), dry_run=dry_run)
    return _forecast(config, setup, said) if dry_run else _predict(config, setup, derived, said)


class Said(NamedTuple):  # a dataclass takes longer than `--help` should
    """How much is said, and to whom: events for machines, nothing but errors, or also the times of each stage."""

    as_json: bool
    quiet: bool
    verbose: bool


class ClusterAsked(NamedTuple):
    """The address of a Ray cluster, if one is asked for, and the CPUs of each worker on nodes without a GPU."""

    address: str | None
    cpus: int | None


def _log_to(log_file: Path | None) -> None:
    """For the rest of the command: details to that file, and what native code prints to the log."""
    from cervix_engine.cli.shared.logs import debug_log, native_lines_logged

    context = click.get_current_context()
    context.with_resource(debug_log(log_file))
    context.with_resource(native_lines_logged())


def _told_to(derived: DerivedOutputs, said: Said, config: BatchConfig, ray: ClusterAsked) -> RunSetup:
    """What the run works with, and whoever wants to know what was listed and what was opened."""
    from dataclasses import replace

    from cervix_engine.run.batch import RunSetup

    setup = click.get_current_context().find_object(RunSetup) or RunSetup()
    setup = replace(setup, listed=derived.check_listing)
    if said.quiet:
        return setup
    return replace(setup, opened=partial(_say_choice, config, ray.address is not None), compared=_say_news)


def _on_cluster(ray: ClusterAsked, setup: RunSetup, *, dry_run: bool) -> RunSetup:
    """`setup`, with the workers of a Ray cluster where one is asked for."""
    from dataclasses import replace

    from cervix_engine.errors import UsageError

    if ray.address is None:
        if ray.cpus:
            raise UsageError("--ray-cpus is for the workers of a cluster: name one with --ray")
        return setup
    from cervix_engine.cluster.driver import predict_on
    from cervix_engine.cluster.ray_pool import RayOptions, on_ray
    from cervix_engine.extras import require_installed

    if dry_run:
        raise UsageError("--dry-run tells of this machine alone: leave --ray out")
    require_installed("ray", "ray", work="--ray")
    return replace(setup, predict=predict_on(on_ray(RayOptions(ray.address, ray.cpus))))


def _predict(config: BatchConfig, setup: RunSetup, derived: DerivedOutputs, said: Said) -> int:
    from cervix_engine.cli.batch_messages import kept_words, summary_lines
    from cervix_engine.cli.shared.events import emit
    from cervix_engine.cli.shared.signals import prompt_interruption
    from cervix_engine.files import without_keys
    from cervix_engine.run.batch import predict_folder
    from cervix_engine.table.names import escape_name

    if said.as_json:
        emit("start", tiles=escape_name(without_keys(str(config.tiles))), out=escape_name(str(config.out)))
    with prompt_interruption(partial(kept_words, config.out)), _progress(said) as progress:
        done = predict_folder(config, progress=progress, setup=setup)
    if said.as_json:
        emit("done", report=done.to_json())
    if not said.quiet:
        for line in summary_lines(done, config.out, verbose=said.verbose):
            click.echo(line, err=True)
    derived.make(config)
    if not said.quiet:
        for name, path in derived.targets.items():
            click.echo(f"{name}: {path}", err=True)
    return INCOMPLETE if done.failed or done.folder_changes else 0


def _say_choice(config: BatchConfig, on_cluster: bool, choice: Choice) -> None:
    from cervix_engine.cli.batch_messages import choice_lines, worker_line
    from cervix_engine.words import counted

    for line in choice_lines(config.model, choice):
        click.echo(line, err=True)
    if on_cluster:
        click.echo(worker_line(choice), err=True)
    elif config.batch_size == "auto":
        click.echo(f"--batch-size auto: batches of {counted(choice.batch_size, 'tile')}", err=True)


def _say_news(kept: Kept) -> None:
    from cervix_engine.cli.batch_messages import news_line

    click.echo(news_line(kept), err=True)


def _forecast(config: BatchConfig, setup: RunSetup, said: Said) -> int:
    from cervix_engine.cli.batch_messages import forecast_lines
    from cervix_engine.cli.shared.events import emit
    from cervix_engine.cli.shared.signals import prompt_interruption
    from cervix_engine.run.dry_run import forecast

    with prompt_interruption():
        expected = forecast(config, setup=setup)
    if said.as_json:
        emit("forecast", forecast=expected.to_json())
        return 0
    for line in forecast_lines(expected, config.previews):
        click.echo(line)
    return 0


@contextmanager
def _progress(said: Said) -> Iterator[Callable[[int, int], None]]:
    from cervix_engine.cli.shared.events import progress_events
    from cervix_engine.cli.shared.progress import batch_progress
    from cervix_engine.run.batch import no_progress

    if said.as_json or said.quiet:
        yield progress_events() if said.as_json else no_progress
        return
    with batch_progress() as progress:
        yield progress
