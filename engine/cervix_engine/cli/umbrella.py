"""`cervix`: one name for all commands. `cervix batch …` is `cervix-batch …`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from importlib.metadata import EntryPoint, distribution
from typing import Any

import click

from cervix_engine.cli.shared.command import HELP_NAMES, OneLineErrors
from cervix_engine.version import __version__

_PREFIX = "cervix-"
_WHOLE = 1000  # characters
Programs = Mapping[str, EntryPoint]


def installed_programs() -> Programs:
    """The programs of the installed distribution."""
    return programs_among(distribution("cervix").entry_points.select(group="console_scripts"))


def programs_among(scripts: Iterable[EntryPoint]) -> Programs:
    """Those that are called `cervix-…`, by what follows in their names."""
    return {script.name.removeprefix(_PREFIX): script for script in scripts if script.name.startswith(_PREFIX)}


class Umbrella(OneLineErrors, click.Group):
    """A group whose commands are programs of their own; each is imported when it is asked for.

    Args:
        programs: gives the programs. Only asked once a command line is read.
    """

    def __init__(self, *args: Any, programs: Callable[[], Programs] = installed_programs, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.programs = programs

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click hands it in
        return sorted(self.programs())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - as above
        program = self.programs().get(cmd_name)
        command: click.Command | None = program.load() if program else None
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ["--help"])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.programs() and (close := get_close_matches(args[0], self.programs(), n=1)):
            ctx.fail(f"No such command {args[0]!r}. Did you mean {close[0]!r}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Each command with the whole first sentence of its help; click's own cuts it off at the line's end."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, command.get_short_help_str(limit=_WHOLE)) for name, command in commands if command]
            )


@click.command(
    cls=Umbrella,
    context_settings=HELP_NAMES,
    epilog="Each is a program too: cervix batch is cervix-batch. cervix COMMAND --help explains one.",
)
@click.version_option(__version__)
def main() -> None:
    """Train, certify and run classifiers of Pap-smear tiles."""
