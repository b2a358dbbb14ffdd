"""A table whose own name is not UTF-8 works in every command that writes or reads one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.cli.compare import main as compare
from cervix_engine.cli.report import main as report
from cervix_engine.cli.verify import main as verify
from engine.run.support import Invoke

ODD = os.fsdecode(b"odd \xff")


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".jsonl", ".parquet"])
def test_every_command_takes_a_table_of_any_name(
    suffix: str, invoke: Invoke, tiles: Path, bundle: Bundle, tmp_path: Path
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="needs pyarrow: pip install '.[report]'")
    out = tmp_path / f"{ODD}{suffix}"
    beside = {
        name: str(tmp_path / f"{ODD}.{name}") for name in ("slides.csv", "html", "geo", "log", "again.html", "diff")
    }
    done = invoke(
        *("--summary", beside["slides.csv"], "--report", beside["html"], "--geojson", beside["geo"]),
        *("--log-file", beside["log"], "--coords", "{*}_{x}{y}"),
        out=out,
    )
    assert done.exit_code == 0, done.output
    for arguments in (["--dry-run"], ["--retry-failures"], ["--overwrite", "--json"]):
        assert invoke(*arguments, out=out).exit_code == 0
    for command, arguments in (
        (verify, [str(out)]),
        (report, [str(out), "--out", beside["again.html"], "--tiles", str(tiles), "--model", str(bundle.root)]),
        (compare, [str(out), str(out), "--out", beside["diff"]]),
    ):
        said = CliRunner().invoke(command, arguments)
        assert said.exit_code == 0, said.output
    assert all(Path(path).exists() for path in beside.values())
    assert f"<title>cervix report: odd \\udcff{suffix}" in Path(beside["html"]).read_text(encoding="utf-8")
