"""A run on a real Ray cluster on loopback: the table of a local run, also where an actor and a node are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cervix_engine.backends.device import Device
from cervix_engine.run.batch import BatchConfig, predict_folder
from cervix_engine.run.record import RunRecord
from cervix_engine.run.session import Chosen, SessionRequest, choose_backend
from cervix_engine.run.verify import verify_table
from cervix_engine.table.formats import csv_lines
from engine.cluster.ray_cluster import RayCluster
from engine.cluster.slow_choice import PROGRAM
from engine.run.support import (
    PATIENCE_S,
    choose_fake,
    draw_folder,
    finished_files,
    make_bundle,
    make_fake_bundle,
    run_setup,
)

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TILES, BATCH = 120, 2


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with RayCluster(nodes=2) as running:
        yield running


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = draw_folder(tmp_path_factory.mktemp("study") / "tiles", TILES)
    (root / "bad.png").write_bytes(b"")
    return root


def test_the_command_writes_the_table_of_a_local_run(cluster: RayCluster, tiles: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    local = BatchConfig(tiles, tmp_path / "local.csv", bundle.root)
    predict_folder(local)
    out = tmp_path / "preds.csv"
    command: list[str | Path] = [
        Path(sys.executable).with_name("cervix-batch"),
        tiles,
        "--model",
        bundle.root,
        "--out",
        out,
    ]
    done = subprocess.run(
        [*command, "--ray", cluster.address],
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 3, done.stderr
    assert out.read_bytes() == local.out.read_bytes()
    made, here = RunRecord.load(out.with_name("preds.csv.run.json")), RunRecord.load(local.record_path)
    assert (made.identity, made.table) == (here.identity, here.table)
    assert sum(node.tiles for node in made.nodes) == TILES + 1
    assert verify_table(out) == []


def test_a_folder_and_shares_of_cpus(cluster: RayCluster, tiles: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs pyarrow: pip install '.[report]'")
    bundle = make_bundle(tmp_path / "bundle")
    command: list[str | Path] = [Path(sys.executable).with_name("cervix-batch"), tiles, "--model", bundle.root]
    out = tmp_path / "preds"
    options = ["--device", "cpu", "-b", "8", "--ray", cluster.address, "--ray-cpus", "1"]
    done = subprocess.run(
        [*command, "--out", f"{out}/", *options],
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 3, done.stderr
    said = done.stderr.splitlines()
    assert any(": fp32 on onnxruntime-cpu" in line for line in said)
    assert any(
        line.startswith("each worker: cpu-") and line.endswith(", 1 thread, batches of 8 tiles") for line in said
    )
    made = RunRecord.load(tmp_path / "preds.run.json")
    assert made.identity.threads == 1
    assert sorted(path.name for path in out.iterdir()) == ["_manifest.json", "part-00000.parquet"]
    assert verify_table(out) == []
    # On one thread here, too, the rows are the same.
    local = BatchConfig(tiles, tmp_path / "local.csv", bundle.root, device=Device.parse("cpu"), batch_size=8)

    def choose(request: SessionRequest) -> Chosen:
        return choose_backend(replace(request, threads=1))

    predict_folder(local, setup=run_setup(choose=choose))
    assert b"".join(csv_lines(out)) == local.out.read_bytes()


def test_an_actor_and_a_node_are_killed(cluster: RayCluster, tiles: Path, tmp_path: Path) -> None:
    bundle = make_fake_bundle(tmp_path / "bundle")
    local = BatchConfig(tiles, tmp_path / "local.csv", bundle.root, batch_size=BATCH)
    predict_folder(local, setup=run_setup(choose=choose_fake))
    config = replace(local, out=tmp_path / "preds.csv")
    driver = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, cluster.address, tiles, "--model", bundle.root, "--out", config.out, "-b", "2"],
        env=cluster.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    ends = time.monotonic() + PATIENCE_S
    journal = tmp_path / ".preds.csv.cervix" / "journal.jsonl"
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 1):
        assert time.monotonic() < ends
        time.sleep(0.02)
    os.kill(cluster.ask("actors")[0], signal.SIGKILL)
    cluster.ask("lose")
    printed, said = driver.communicate(timeout=PATIENCE_S)
    assert (driver.returncode, printed) == (3, ""), said
    assert "is lost, and its blocks are predicted again" in said
    assert config.out.read_bytes() == local.out.read_bytes()
    assert {path.name for path in tmp_path.glob("preds.csv*")} == finished_files("preds.csv")
    assert not journal.parent.exists()


def test_no_cluster_answers(tiles: Path, tmp_path: Path) -> None:
    address = "127.0.0.1:1"
    bundle = make_fake_bundle(tmp_path / "bundle")
    command: list[str | Path] = [Path(sys.executable).with_name("cervix-batch"), tiles, "--model", bundle.root]
    done = subprocess.run(
        [*command, "--out", tmp_path / "preds.csv", "--ray", address],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 2
    assert done.stderr == f"error: --ray {address}: no cluster answers there: docs/scaling.md says how to start one\n"
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["bundle"]
