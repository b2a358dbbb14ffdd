"""What an extra installs may be missing: one line says so, before any work, and how to install it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cervix_train.synthetic import write_drawn
from engine.run.support import draw_folder, make_bundle

SCRIPTS = Path(sys.executable).parent
TRAIN = ("tensorflow", "keras", "sklearn", "scipy", "matplotlib")
RUNTIMES = ("onnxruntime", "onnxruntime_ep_openvino", "openvino", "tensorrt", "tensorrt_rtx")
REMOTE = ": pip install '.[remote]'"
SLIDES = "reading whole slides needs openslide: pip install '.[slides]'"
NO_RUNTIME = "(ONNX Runtime is not installed: pip install '.[cpu]'; "


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiles, labelled tiles, a bundle, and a program that hides modules from Python. Read only."""
    folder = tmp_path_factory.mktemp("given")
    draw_folder(folder / "study", 8)
    make_bundle(folder / "bundle")
    (folder / "a.svs").write_bytes(b"never looked at")
    write_drawn(folder / "cells", tiles=60, seed=1)
    (folder / "hiding").mkdir()
    hide = "import os, sys\nsys.modules.update(dict.fromkeys(os.environ['HIDDEN'].split()))\n"
    (folder / "hiding" / "sitecustomize.py").write_text(hide)
    return folder


def run(given: Path, line: str, *, hidden: tuple[str, ...], cwd: Path) -> subprocess.CompletedProcess[str]:
    program, *arguments = line.replace("@", f"{given}/").split()
    environment = {**os.environ, "HIDDEN": " ".join(hidden), "PYTHONPATH": str(given / "hiding")}
    return subprocess.run(
        [str(SCRIPTS / program), *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("line", "hidden", "words"),
    [
        *(
            ("cervix-train @cells -o new --backbone cnn", (name,), f"training needs {name}: pip install '.[train]'")
            for name in TRAIN
        ),
        ("cervix-train @cells -o new", TRAIN, "training needs tensorflow, keras, sklearn, scipy, matplotlib: pip"),
        ("cervix-evaluate @bundle @cells", TRAIN, "training needs tensorflow, keras, sklearn, scipy, matplotlib: pip"),
        ("cervix-audit @cells --price --weights none", TRAIN, "training needs tensorflow, keras, sklearn"),
        ("cervix-batch @study --model @bundle -o new.csv", RUNTIMES, NO_RUNTIME),
        ("cervix-bench @study --model @bundle", RUNTIMES, NO_RUNTIME),
        ("cervix-batch @study --model @bundle -o new.csv --report new.html", ("jinja2",), "a page needs jinja2: pip"),
        (
            "cervix-batch @study --model @bundle -o new.parquet",
            ("pyarrow",),
            "Parquet needs pyarrow: pip install",
        ),
        (
            "cervix-batch s3://bucket/tiles --model @bundle -o new.csv",
            ("fsspec", "s3fs"),
            f"s3:// needs fsspec, s3fs{REMOTE}",
        ),
        ("cervix-batch gs://bucket/tiles --model @bundle -o new.csv", ("gcsfs",), f"gs:// needs gcsfs{REMOTE}"),
        ("cervix-batch https://host/t --model @bundle -o new.csv", ("aiohttp",), f"https:// needs aiohttp{REMOTE}"),
        ("cervix-batch @a.svs --model @bundle -o new.csv", ("openslide",), SLIDES),
        ("cervix-batch @study --whole-slides --model @bundle -o new.csv", ("openslide",), SLIDES),
        (
            "cervix-batch @study --model @bundle -o new.csv --ray auto",
            ("ray",),
            "--ray needs ray: pip install '.[ray]'",
        ),
        ("cervix-bench @study --model @bundle --plot new.png", ("matplotlib",), "--plot needs matplotlib: pip install"),
        (
            "cervix-parity --model @bundle --history new.jsonl --drift-plot new.png",
            ("matplotlib",),
            "--drift-plot needs matplotlib: pip install '.[train]'",
        ),
    ],
)
def test_a_missing_library_is_one_line_before_any_work(
    given: Path, tmp_path: Path, line: str, hidden: tuple[str, ...], words: str
) -> None:
    done = run(given, line, hidden=hidden, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []


def test_what_needs_no_training_library_works_without(given: Path, tmp_path: Path) -> None:
    for line in (
        "cervix-audit @cells",
        "cervix-batch @study --model @bundle -o new.csv",
        "cervix-doctor --model @bundle",
    ):
        done = run(given, line, hidden=(*TRAIN, "jinja2", "pyarrow"), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
