"""Runs `cervix-import`."""

from __future__ import annotations

from click.testing import CliRunner, Result

from cervix_export.cli.import_model import main


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])
