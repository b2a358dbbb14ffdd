"""What `cervix-compare --json` and `cervix-doctor --json` print is what their schemas say, and nothing less is."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
from click.testing import CliRunner

from cervix_engine.cli import compare, doctor
from engine.report.bundles import certified_bundle
from engine.table.tables import Tile, WriteTable


def assert_follows(schema_name: str, command: click.Command, *arguments: str) -> None:
    """The printed document is valid, and becomes invalid without any of its keys and with one more."""
    text = (resources.files("cervix_engine") / "schemas" / f"{schema_name}.schema.json").read_text(encoding="utf-8")
    schema = json.loads(text)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    document: dict[str, Any] = json.loads(CliRunner().invoke(command, [*arguments, "--json"]).stdout)
    validator.validate(document)
    for key in document:
        assert not validator.is_valid({name: value for name, value in document.items() if name != key}), key
    assert not validator.is_valid({**document, "more": 1})


@pytest.mark.parametrize("labelled", [False, True])
def test_a_comparison(write_table: WriteTable, tmp_path: Path, labelled: bool) -> None:
    old = write_table([Tile("a"), Tile("b"), Tile("c", reason="empty: 0 bytes")])
    old = old.rename(old.with_name("old.csv"))
    new = write_table([Tile("a", probabilities=(0.6, 0.1, 0.1, 0.1, 0.1)), Tile("b"), Tile("d")])
    (labels := tmp_path / "labels.csv").write_text("path,label\na,cervix_mep\n", encoding="utf-8")
    assert_follows("comparison", compare.main, str(new), str(old), *(["--labels", str(labels)] if labelled else []))


def test_a_diagnosis(tmp_path: Path) -> None:
    bundle = certified_bundle(tmp_path / "b", ("fp32", 20.0))
    assert_follows("doctor", doctor.main, "--model", str(bundle))
    assert_follows("doctor", doctor.main, "--model", str(tmp_path / "none"))
