"""What all commands share: a wrong command line is one clear line, and options can come from a TOML file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cervix_engine.cli.shared.errors import errors_as_exit_codes, one_line
from cervix_engine.cli.shared.options import FILE
from cervix_engine.cli.shared.surroundings import open_closed_streams
from cervix_engine.errors import UsageError
from cervix_engine.version import __version__

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


HELP_NAMES = {"help_option_names": ["-h", "--help"]}


class OneLineErrors(click.Command):
    """A command whose usage errors are one line and exit code 2."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        open_closed_streams()
        standalone = kwargs.pop("standalone_mode", True)
        run: Callable[..., Any] = super().main
        if not standalone:
            return run(*args, standalone_mode=False, **kwargs)
        try:
            sys.exit(run(*args, standalone_mode=False, **kwargs) or 0)
        except click.ClickException as error:
            click.echo(f"error: {one_line(error.format_message())} See {_program(error)} --help.", err=True)
            sys.exit(error.exit_code)


class CervixCommand(OneLineErrors):
    """A command as all of the project's are: every error is one line and an exit code, which its function may return.

    It has `--version`, `--config FILE` and `--dump-config`. The file holds options by their long names, such as
    `batch-size = 64`. The command line goes before the file.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"context_settings": HELP_NAMES, **kwargs})
        self.params += [
            _eager("--version", _print_version, "Show the version and exit.", is_flag=True),
            _eager("--config", _load, "TOML file to take options from; the command line goes before it.", type=FILE),
            _eager("--dump-config", _remember_dump, "Print the options in effect as TOML and exit.", is_flag=True),
        ]
        for parameter in self.params:
            if isinstance(parameter.type, click.Path) and parameter.type.type is Path:
                parameter.type = LocalPath(parameter.type)

    def invoke(self, ctx: click.Context) -> Any:
        if ctx.meta.pop(_DUMP, False):
            click.echo(dump_options(ctx), nl=False)
            return 0
        with errors_as_exit_codes(quiet=bool(ctx.params.get("quiet"))):
            return super().invoke(ctx)


class LocalPath(click.ParamType):  # type: ignore[type-arg]  # generic in newer clicks alone
    """A path of this machine: a URL is refused as it was given, where a path would drop one of its slashes."""

    def __init__(self, path: click.Path) -> None:
        self._path, self.name = path, path.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from cervix_engine.files import local_path  # here, as `--help` is to answer at once

        try:
            local_path(value)
        except UsageError as error:
            self.fail(f"{error}.", param, ctx)
        return self._path.convert(value, param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return self._path.shell_complete(ctx, param, incomplete)


_DUMP = "cervix.dump_config"


def dump_options(ctx: click.Context) -> str:
    """The options in effect, as a file for `--config`; what is unset is left out."""
    import json  # here, as `--help` is to answer at once

    lines = []
    for parameter in _options(ctx.command):
        value = ctx.params.get(parameter.name or "")
        if value is None:
            continue
        shown = str(value) if isinstance(value, Path) else value
        # JSON's strings, numbers and booleans are TOML's too, but for DEL, which no option holds.
        lines.append(f"{_key(parameter)} = {json.dumps(shown, ensure_ascii=False)}\n")
    return "".join(lines)


def _eager(name: str, callback: Callable[..., None], words: str, **given: Any) -> click.Option:
    """An option that is answered before all others, and that the command's function does not see."""
    return click.Option([name], is_eager=True, expose_value=False, callback=callback, help=words, **given)


def _print_version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"{ctx.find_root().info_name}, version {__version__}")
        ctx.exit()


def _remember_dump(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    ctx.meta[_DUMP] = value


def _load(ctx: click.Context, _parameter: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    names = {_key(item): item.name for item in _options(ctx.command)}
    defaults: MutableMapping[str, Any] = {}
    for key, value in _read(path).items():
        if key not in names:
            from difflib import get_close_matches  # here, as `--help` is to answer at once

            close = get_close_matches(key, names, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise click.UsageError(f"{path}: no option {key!r}.{hint}", ctx)
        if isinstance(value, (dict, list)):
            raise click.UsageError(f"{path}: {key} is {value}, expected one value.", ctx)
        defaults[names[key] or ""] = value
    ctx.default_map = defaults


def _read(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        # TOML has no byte-order mark, but editors write one.
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise click.UsageError(f"cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise click.UsageError(f"{path}, line {line}: bytes that are not UTF-8: save the file as UTF-8.") from error
    except ValueError as error:
        raise click.UsageError(f"{path} is no TOML: {error}.") from error


def _options(command: click.Command) -> Iterator[click.Option]:
    """What a file may hold: no `--help` and the like, and no short form of another option, such as `--fp16`."""
    for item in command.params:
        short_form = isinstance(item, click.Option) and item.is_flag and not item.is_bool_flag
        if isinstance(item, click.Option) and not item.is_eager and not short_form:
            yield item


def _key(option: click.Option) -> str:
    return max(option.opts, key=len).lstrip("-")


def _program(error: click.ClickException) -> str:
    ctx = getattr(error, "ctx", None)
    return str(ctx.command_path) if ctx is not None else Path(sys.argv[0]).name
