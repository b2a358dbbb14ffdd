"""The scripts that `make demo` and the image build lean on, as the processes that they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[1] / "scripts"

MANIFEST = "path,label\ntiles/a.png,cervix_dyk\ntiles/50%.png,cervix_koc\ntiles/c.png,cervix_koc\n"
ROWS = {
    "tiles/a.png": "tiles/a.png,cervix_dyk,ok\n",
    "tiles/50%.png": "tiles/50%25.png,cervix_dyk,ok\n",
    "tiles/c.png": "tiles/c.png,,failed\n",
}


def _run(script: str, *arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPTS / script, *arguments], input=stdin, capture_output=True, text=True, timeout=60
    )


def _summary(folder: Path, *rows: str) -> subprocess.CompletedProcess[str]:
    table, manifest = folder / "preds.csv", folder / "manifest.csv"
    table.write_text("path,pred,status\n" + "".join(rows), encoding="utf-8")
    manifest.write_text(MANIFEST, encoding="utf-8")
    return _run("demo_summary.py", table, manifest)


def test_the_summary_counts_right_wrong_and_failed_tiles(tmp_path: Path) -> None:
    done = _summary(tmp_path, *ROWS.values())
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "cervix_dyk 1 of 1 right 100.0%" in lines
    assert "cervix_koc 0 of 2 right 0.0%" in lines
    assert "all 1 of 3 right 33.3%" in lines
    assert f"table: {tmp_path / 'preds.csv'}" in lines


def test_the_summary_refuses_a_table_whose_books_do_not_balance(tmp_path: Path) -> None:
    one, two, three = ROWS.values()
    for rows in ((one, two), (one, two, three, three), (one, one, two)):
        done = _summary(tmp_path, *rows)
        assert done.returncode == 1
        assert "exactly one row for each tile" in done.stderr


def test_a_container_gets_pips_remote_settings_and_no_folder_of_this_machine() -> None:
    listing = (
        "global.index-url='https://files.example/simple'\n"
        "global.extra-index-url='file:///srv/simple https://more.example/simple'\n"
        "global.find-links='/srv/wheels'\n"
        "global.cert='/etc/ssl/here.pem'\n"
        "freeze.timeout='1'\n"
        ":env:.index-url='https://env.example/simple%2F'\n"
    )
    done = _run("container_pip_conf.py", "/run/secrets/ca", stdin=listing)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        *("[global]", "cert", "=", "/run/secrets/ca"),
        *("index-url", "=", "https://env.example/simple%2F"),
        *("extra-index-url", "=", "https://more.example/simple"),
    ]


def test_the_reference_of_commands_is_up_to_date() -> None:
    done = _run("write_reference.py", "--check")
    assert done.returncode == 0, done.stderr
