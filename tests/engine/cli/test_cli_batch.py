"""`cervix-batch` ends with the documented codes, and says why in one line; as a function, and as a real program."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner, Result

from cervix_engine.bundle.bundle import Bundle, seal
from cervix_engine.cli.batch import main
from cervix_engine.cli.shared.progress import batch_progress
from cervix_engine.run.record import RunRecord
from cervix_engine.run.transaction import TableTransaction
from engine.run.support import (
    FINISHED,
    PATIENCE_S,
    Invoke,
    beside,
    done_event,
    draw_folder,
    make_bundle,
    program_with_shards,
    read_table,
    run_setup,
    tiny_onnx,
    work_folder,
)

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def own_bundle(tmp_path: Path) -> Path:
    """A bundle that a test may break."""
    return make_bundle(tmp_path / "own").root


def assert_refused(done: Result, code: int, message: str) -> None:
    assert isinstance(done.exception, SystemExit), done.exc_info
    assert done.exit_code == code, done.output
    assert done.stdout == ""
    assert re.fullmatch(rf"error: [^\n]*{message}[^\n]*\n", done.stderr), done.stderr


def schema(name: str) -> dict[str, Any]:
    text = (resources.files("cervix_engine") / "schemas" / f"{name}.schema.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document


# ---- success


def test_a_good_run(invoke: Invoke, out: Path) -> None:
    done = invoke()
    assert done.exit_code == 0, done.output
    assert done.stdout == ""
    assert "50 tiles: 50 predicted, 0 failed\n" in done.stderr
    assert f"table: {out}\n" in done.stderr
    assert re.search(
        r"^onnxruntime-cpu \S+ fp32 on cpu-\S+, certificate: none: cervix-parity --certify", done.stderr, re.MULTILINE
    )
    assert beside(out) == FINISHED
    assert len(read_table(out)) == 50


def test_json_is_events_and_the_report_of_their_schemas(invoke: Invoke, out: Path) -> None:
    done = invoke("--json", "-b", "8", "-j", "3")
    assert done.exit_code == 0, done.output
    document = done_event(done.stdout)
    jsonschema.Draft202012Validator(schema("run")).validate(document)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events][:2] == ["start", "progress"]
    for event in events:
        jsonschema.Draft202012Validator(schema("event")).validate(event)
    assert (events[-2]["done"], events[-2]["found"]) == (50, 50)
    assert (document["found"], document["ok"], document["failed"], document["batch_size"]) == (50, 50, 0, 8)
    assert {stage["stage"]: stage["threads"] for stage in document["stages"]}["decode"] == 3
    stored = json.loads((out.parent / "preds.csv.run.json").read_text(encoding="utf-8"))
    assert stored == document
    assert RunRecord.load(out.parent / "preds.csv.run.json").to_json() == document


@pytest.mark.parametrize(
    "change", [{"ok": -1}, {"found": "50"}, {"more": 1}, {"schema": "cervix/run/1"}, {"stages": []}]
)
def test_the_schema_refuses_other_documents(invoke: Invoke, change: dict[str, Any]) -> None:
    document = done_event(invoke("--json").stdout)
    validator = jsonschema.Draft202012Validator(schema("run"))
    assert not validator.is_valid({**document, **change})
    # What later versions added is not in the records of earlier ones.
    for key in document.keys() - {
        "ignored_by",
        "folder_changes",
        "ended_at",
        "seconds",
        "table_changes",
        "shards",
        "nodes",
        "drift",
        "decided",
    }:
        assert not validator.is_valid({name: value for name, value in document.items() if name != key}), key


def test_the_model_comes_from_the_environment(
    tiles: Path, bundle: Bundle, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CERVIX_MODEL", str(bundle.root))
    assert CliRunner().invoke(main, [str(tiles), "-o", str(out)]).exit_code == 0


def test_a_pinned_bundle_in_either_case(invoke: Invoke, bundle: Bundle) -> None:
    assert invoke("--expect-digest", bundle.digest.upper()).exit_code == 0


def test_overwriting(invoke: Invoke, out: Path) -> None:
    out.write_text("old")
    assert invoke("--overwrite").exit_code == 0
    assert len(read_table(out)) == 50


def test_half_precision_in_both_spellings(invoke: Invoke, own_bundle: Path, out: Path) -> None:
    (own_bundle / "model.fp16.onnx").write_bytes(tiny_onnx(half=True))
    seal(own_bundle)
    precisions = []
    for options in (["--fp16"], ["--precision", "fp16"], ["--precision", "fp32"], []):
        done = invoke(*options, "--json", "--overwrite", model=own_bundle)
        precisions.append(done_event(done.stdout)["backend"]["precision"])
    assert precisions == ["fp16", "fp16", "fp32", "fp32"]


# ---- refusals


def test_no_such_folder(invoke: Invoke, tmp_path: Path) -> None:
    assert_refused(invoke(tiles=tmp_path / "gone"), 2, "no such folder: .*gone")


def test_a_file_in_place_of_the_folder(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    assert_refused(invoke(tiles=tmp_path / "a.png"), 2, "not a folder of tiles, a list .* or a whole slide: .*a.png")


def test_an_empty_folder(invoke: Invoke, tmp_path: Path, out: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").write_bytes(b"x")
    assert_refused(invoke(tiles=tmp_path / "empty"), 2, "no tiles in .*: 1 other file .1 with another suffix")
    assert beside(out) == set()


@pytest.mark.parametrize("where", ["tiles", "out", "model"])
@pytest.mark.parametrize("name", ["x" * 300, "/".join(["x" * 200] * 30)], ids=["name", "path"])
def test_a_path_longer_than_the_file_system_has(invoke: Invoke, tmp_path: Path, where: str, name: str) -> None:
    done = invoke(**{where: tmp_path / f"{name}.csv"})
    assert_refused(done, 1 if where == "out" else 2, "")


def test_an_existing_table(invoke: Invoke, out: Path) -> None:
    out.write_text("old")
    assert_refused(invoke(), 2, "is there already: pass --overwrite")
    assert out.read_text() == "old"
    assert beside(out) == {"preds.csv"}


def test_a_missing_model(invoke: Invoke, tmp_path: Path) -> None:
    assert_refused(invoke(model=tmp_path / "gone"), 2, "no bundle at .*gone")
    (tmp_path / "folder").mkdir()
    assert_refused(invoke(model=tmp_path / "folder"), 2, "is not a bundle")


def test_an_altered_bundle(invoke: Invoke, own_bundle: Path, out: Path) -> None:
    (own_bundle / "model.onnx").write_bytes(tiny_onnx(swapped=True))
    assert_refused(invoke(model=own_bundle), 1, "model.onnx was altered")
    (own_bundle / "model.onnx").unlink()
    assert_refused(invoke(model=own_bundle), 1, "model.onnx is missing")
    assert beside(out) == set()


def test_a_model_that_the_runtime_cannot_load(invoke: Invoke, own_bundle: Path, out: Path) -> None:
    # Well-formed, but of an operator that does not exist.
    (own_bundle / "model.onnx").write_bytes(tiny_onnx().replace(b"GlobalAveragePool", b"GlobalAveragePuul"))
    seal(own_bundle)
    assert_refused(invoke(model=own_bundle), 1, "ONNX Runtime cannot load model.onnx")
    (own_bundle / "model.onnx").write_bytes(b"no model at all")
    seal(own_bundle)
    assert_refused(invoke(model=own_bundle), 1, "not an ONNX protobuf")
    assert beside(out) == set()


def test_a_model_that_answers_wrongly(invoke: Invoke, own_bundle: Path, out: Path) -> None:
    (own_bundle / "model.onnx").write_bytes(tiny_onnx(swapped=True))
    seal(own_bundle)
    assert_refused(invoke(model=own_bundle), 1, "answers differ from Keras's on golden tiles")
    assert beside(out) == set()


def test_another_digest_than_the_pinned_one(invoke: Invoke) -> None:
    assert_refused(invoke("--expect-digest", "0" * 64), 1, "digest is [0-9a-f]{64}, expected 0{64}")


def test_no_certificate_under_require_parity(invoke: Invoke, out: Path) -> None:
    assert_refused(invoke("--require-parity"), 4, "no certificate covers fp32")
    assert beside(out) == set()


def test_no_file_of_that_precision(invoke: Invoke) -> None:
    assert_refused(invoke("--fp16"), 1, "no model.fp16.onnx: make it with cervix-export --fp16")
    assert_refused(invoke("--precision", "int8"), 1, "no model.int8.onnx")


def test_a_missing_folder_for_the_table(invoke: Invoke, tmp_path: Path) -> None:
    assert_refused(invoke(out=tmp_path / "gone" / "preds.csv"), 1, "no such folder for the table")
    assert not (tmp_path / "gone").exists()


def test_a_folder_in_place_of_the_table(invoke: Invoke, tmp_path: Path) -> None:
    assert_refused(invoke("--overwrite", out=tmp_path), 2, "is a folder or special file")


def test_a_special_file_in_place_of_the_table(invoke: Invoke, out: Path) -> None:
    os.mkfifo(out)
    assert_refused(invoke("--overwrite"), 2, "is a folder or special file")
    assert out.is_fifo()
    out.unlink()
    out.symlink_to("/dev/null")
    assert_refused(invoke("--overwrite"), 2, "is a folder or special file")
    assert out.is_symlink()


def test_a_table_among_the_tiles(invoke: Invoke, tiles: Path, tmp_path: Path) -> None:
    own = tmp_path / "own tiles"
    shutil.copytree(tiles, own)
    before = sorted(own.rglob("*"))
    (tmp_path / "link").symlink_to(own / "slide_a", target_is_directory=True)
    for out in (
        own / "preds.csv",
        own / "slide_a" / "preds.csv",
        own / "slide_a/../x.csv",
        tmp_path / "link" / "p.csv",
    ):
        assert_refused(invoke(tiles=own, out=out), 2, "among the tiles")
    assert sorted(own.rglob("*")) == before


def test_a_second_writer(invoke: Invoke, out: Path) -> None:
    with TableTransaction(out):
        assert_refused(invoke(), 1, "another run is writing")


def test_another_batch_size_than_the_partial_run_s(invoke: Invoke) -> None:
    assert invoke("-b", "8", setup=run_setup(stop_at="assemble")).exit_code == 130
    assert_refused(invoke("-b", "9"), 1, "batch_size 8, this one has 9.*--no-resume")


def test_an_interruption_says_what_to_do(invoke: Invoke) -> None:
    done = invoke(setup=run_setup(stop_at="assemble"))
    assert isinstance(done.exception, SystemExit), done.exc_info
    assert done.exit_code == 130
    assert "interrupted" in done.stderr


def test_a_message_with_line_ends_stays_one_line(invoke: Invoke, tmp_path: Path) -> None:
    assert_refused(invoke(tiles=tmp_path / "two\nlines\r.png"), 2, "no such folder")


@pytest.mark.parametrize(
    "options",
    [["--precision", "fp8"], ["-b", "0"], ["-b", "4097"], ["-b", "x"], ["-j", "0"], ["-j", "257"], ["--nonsense"]],
    ids=" ".join,
)
def test_options_that_do_not_exist(invoke: Invoke, options: list[str]) -> None:
    done = invoke(*options)
    assert done.exit_code == 2
    assert re.fullmatch(r"error: [^\n]+\n", done.stderr), done.stderr


@pytest.mark.parametrize("arguments", [[], ["tiles"], ["--out", "preds.csv"], ["one", "two", "--out", "preds.csv"]])
def test_missing_arguments(arguments: list[str]) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert re.fullmatch(r"error: [^\n]+\n", done.stderr), done.stderr


# ---- progress


def test_plain_progress_counts_what_this_run_did(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [100.0]
    monkeypatch.setattr("cervix_engine.cli.shared.progress.time.monotonic", lambda: clock[-1])
    with batch_progress() as update:
        for seconds, done in ((101.0, 5_000), (102.0, 5_010), (121.0, 5_200), (122.0, 5_210)):
            clock.append(seconds)
            update(done, 6_000)
    # 5,000 tiles are an earlier run's: this one did 200 in 20 seconds.
    assert capsys.readouterr().err == "5200/6000 tiles, 10.0 tiles/s, 80 s left\n"


# ---- the real program


def program(tiles: Path, out: Path, model: Path, *options: str) -> list[str]:
    script = str(Path(sys.executable).with_name("cervix-batch"))
    return [script, str(tiles), "--out", str(out), "--model", str(model), *options]


def test_the_installed_program(tiles: Path, bundle: Bundle, out: Path, invoke: Invoke) -> None:
    done = subprocess.run(
        program(tiles, out, bundle.root, "--json"), capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    assert done_event(done.stdout)["found"] == 50
    assert "Traceback" not in done.stderr
    table = out.read_bytes()
    assert invoke("--overwrite").exit_code == 0
    assert out.read_bytes() == table

    refused = subprocess.run(program(tiles, out, bundle.root), capture_output=True, text=True, timeout=PATIENCE_S)
    assert refused.returncode == 2
    assert re.fullmatch(r"error: [^\n]*is there already[^\n]*\n", refused.stderr)


def test_names_that_are_not_utf_8_in_any_locale(bundle: Bundle, out: Path, tmp_path: Path, tiles: Path) -> None:
    root = os.fsencode(tmp_path / "study") + b"\xff"
    os.mkdir(root)  # noqa: PTH102 - bytes
    one = next(tiles.glob("*.png")).read_bytes()
    for name in (b"\xe9.png", "é.png".encode(), b"a\nb.png"):
        Path(os.fsdecode(root + b"/" + name)).write_bytes(one)
    tables = []
    for locale in ("C", "C.UTF-8", "POSIX"):
        environment = {**os.environ, "LC_ALL": locale}
        command = program(Path(os.fsdecode(root)), out, bundle.root, "--overwrite")
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE_S, env=environment)
        assert done.returncode == 0, done.stderr
        tables.append(out.read_bytes())
    assert len(set(tables)) == 1
    assert [row["path"] for row in read_table(out)] == ["a%0Ab.png", "é.png", "%E9.png"]
    assert {row["slide_id"] for row in read_table(out)} == {"study%FF"}


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_program_soon_and_resumably(
    signum: signal.Signals, code: int, bundle: Bundle, out: Path, tmp_path: Path, invoke: Invoke
) -> None:
    many = draw_folder(tmp_path / "many", 400)
    command = [sys.executable, "-c", program_with_shards(8), *program(many, out, bundle.root, "-b", "4")[1:]]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + PATIENCE_S
    while len(list(work_folder(out).glob("shard-*"))) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signum)
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
    assert not out.exists()
    done = invoke("--json", tiles=many)
    assert done.exit_code == 0, done.stderr
    assert done_event(done.stdout)["resumed"] >= 16
    assert len(read_table(out)) == 400


def test_help_and_version_load_nothing_heavy() -> None:
    source = (
        "import sys\n"
        "from cervix_engine.cli.batch import main\n"
        "try: main([sys.argv[1]])\n"
        "except SystemExit as leaving: assert not leaving.code\n"
        "heavy = {'numpy', 'cv2', 'onnxruntime', 'rich', 'filelock'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    for option in ("--help", "-h", "--version"):
        done = subprocess.run(
            [sys.executable, "-c", source, option], capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout
