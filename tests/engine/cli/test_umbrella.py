"""`cervix COMMAND` is `cervix-COMMAND`: the list comes from what is installed, and nothing is lost on the way."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from cervix_engine.cli.umbrella import Umbrella, installed_programs, main, programs_among

ROOT = Path(__file__).parents[3]


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, prog_name="cervix")


def test_every_program_of_the_project_is_listed_with_a_whole_sentence() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert {f"cervix-{name}" for name in installed_programs()} == scripts.keys() - {"cervix"}, "make setup"
    done = _run("--help")
    assert done.exit_code == 0
    listed = done.stdout.partition("Commands:\n")[2].partition("\n\n")[0]
    assert re.findall(r"^  ([\w-]+)  ", listed, re.MULTILINE) == sorted(installed_programs())
    assert "..." not in listed


def test_a_program_that_is_added_appears_by_itself() -> None:
    added = EntryPoint("cervix-added", "cervix_engine.cli.verify:main", "console_scripts")
    other = EntryPoint("pip", "pip:main", "console_scripts")
    group = Umbrella("cervix", programs=lambda: programs_among([added, other]))
    assert group.list_commands(click.Context(group)) == ["added"]
    assert CliRunner().invoke(group, ["added", "--help"]).stdout.startswith("Usage: cervix added ")


def test_without_a_command_it_helps() -> None:
    assert (_run().exit_code, _run().stdout) == (0, _run("--help").stdout)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bach", "No such command 'bach'. Did you mean 'batch'? See cervix --help."),
        ("xyzzy", "No such command 'xyzzy'. See cervix --help."),
        ("--modle x", "No such option '--modle'. See cervix --help."),
        ("verify", "Missing argument 'TABLE'. See cervix verify --help."),
        ("doctor --config none.toml", "cannot read none.toml: No such file or directory. See cervix doctor --help."),
    ],
)
def test_a_wrong_command_line_is_one_clear_line(line: str, message: str) -> None:
    done = _run(*line.split())
    assert (done.exit_code, done.stderr) == (2, f"error: {message}\n")


def test_exit_codes_and_output_are_the_programs_own(tmp_path: Path) -> None:
    none = str(tmp_path / "none")
    assert _run("doctor", "--model", none, "--json").exit_code == 1
    assert '"cervix/doctor/1"' in _run("doctor", "--model", none, "--json").stdout
    assert _run("doctor", "--model", none, "--dump-config").stdout.startswith(f'model = "{none}"\n')


def test_only_the_program_asked_for_is_imported() -> None:
    code = "import sys; from cervix_engine.cli.umbrella import main; main(prog_name='cervix')"
    after = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); "
    done = subprocess.run(
        [sys.executable, "-c", after + code, "verify", "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.startswith("Usage: cervix verify ")
    imported = set(done.stderr.split())
    assert "cervix_engine.cli.verify" in imported
    assert not {name for name in imported if name.startswith(("cervix_train", "cervix_export", "cervix_engine.cli.ba"))}
