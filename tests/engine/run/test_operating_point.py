"""A run decides by its bundle's operating point or by what it is asked; all that is made of its table says the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cervix_engine.bundle.bundle import Bundle, seal
from cervix_engine.cli.batch_messages import point_words
from cervix_engine.contract import OperatingPoint
from cervix_engine.errors import ResumeMismatchError, UsageError
from cervix_engine.model import Model
from cervix_engine.report.make import ReportConfig, make_report
from cervix_engine.run.assembly.merge import merge_shards
from cervix_engine.run.assembly.part import Part
from cervix_engine.run.batch import BatchConfig, RunSetup, predict_folder
from cervix_engine.run.record import DecidedTiles, record_beside
from cervix_engine.run.session import SessionRequest, open_session
from cervix_engine.run.verify import verify_table
from cervix_engine.table.columns import table_columns
from cervix_engine.table.compare import compare
from cervix_engine.table.formats import csv_line
from cervix_engine.table.reader import Table
from cervix_engine.table.rows import DecidedRows
from engine.run.support import CONTRACT, choose_fake, draw_folder, make_fake_bundle, read_table, run_setup

POINT = OperatingPoint(0.35, review_below=0.3, review_within=0.04, sensitivity=0.98)
FAKE = RunSetup(choose_fake)


@pytest.fixture(scope="module")
def decided(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with an operating point."""
    root = tmp_path_factory.mktemp("decided") / "model"
    make_fake_bundle(root)
    replace(CONTRACT, operating_point=POINT).save(root / "contract.json")
    return seal(root)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiles on two slides whose names say where they lie, one of them broken."""
    drawn = draw_folder(tmp_path_factory.mktemp("drawn"), 28)
    root = tmp_path_factory.mktemp("places")
    for index, path in enumerate(sorted(drawn.rglob("*.*"))):
        tile = root / f"slide_{'AB'[index % 2]}" / f"x{64 * index}_y0{path.suffix}"
        tile.parent.mkdir(exist_ok=True)
        tile.write_bytes(path.read_bytes())
    (root / "slide_A/x9000_y0.png").write_bytes(b"")
    return root


def fake_model(bundle: Bundle) -> Model:
    request, stack = SessionRequest(bundle, batch_size=8), ExitStack()
    session = stack.enter_context(open_session(request, choose=choose_fake))
    return Model(request, choose_fake(request), session, stack)


@pytest.fixture
def config(places: Path, decided: Bundle, out: Path) -> BatchConfig:
    return BatchConfig(tiles=places, out=out, model=decided.root, batch_size=8, workers=1)


def answers(rows: list[dict[str, str]]) -> dict[str, tuple[str, ...]]:
    names = ("category", "abnormal", "review", "prob_abnormal")
    return {row["path"]: tuple(row[name] for name in names) for row in rows if row["status"] == "ok"}


def test_table_summary_geojson_and_page_agree_tile_by_tile(config: BatchConfig, decided: Bundle) -> None:
    record = predict_folder(config, setup=FAKE)
    folder, rows = config.out.parent, read_table(config.out)
    expected = answers(rows)
    assert len(expected) == record.ok == 28
    assert {cells[1] for cells in expected.values()} == {cells[2] for cells in expected.values()} == {"yes", "no"}
    asked = ReportConfig(config.out, folder / "r.html", summary=folder / "s.csv", geojson=folder / "geo")
    findings = make_report(replace(asked, model=decided.root))
    features = [item for path in (folder / "geo").iterdir() for item in json.loads(path.read_text())["features"]]
    found = {item["properties"]["name"]: item["properties"] for item in features}
    abnormal = {name: f"{item['measurements']['prob_abnormal']:.6f}" for name, item in found.items()}
    assert {name: (*item["metadata"].values(), abnormal[name]) for name, item in found.items()} == expected
    for slide in read_table(folder / "s.csv"):
        mine = [row for row in rows if row["slide_id"] == slide["slide_id"] and row["status"] == "ok"]
        for name in ("abnormal", "review"):
            assert int(slide[f"tiles_{name}"]) == sum(row[name] == "yes" for row in mine)
    picked = {pick.row.path: pick for pick in findings.suspicious}
    assert {name: f"{pick.abnormal:.6f}" for name, pick in picked.items()} == {n: c[3] for n, c in expected.items()}
    with fake_model(decided) as model:
        files = [Path(config.tiles) / row["path"] for row in rows if row["status"] == "ok"]
        said = model.predict_files(files)
    assert [
        (item.category, "yes" if item.abnormal else "no", "yes" if item.review else "no", f"{item.prob_abnormal:.6f}")
        for item in said
    ] == list(expected.values())
    assert said.columns()["abnormal"] == [item.abnormal for item in said]


def said_yes(table: Path, column: str) -> int:
    return sum(row[column] == "yes" for row in read_table(table))


def test_the_record_and_the_closing_lines_count_what_was_decided(
    invoke: Callable[..., Any], decided: Bundle, places: Path, out: Path, fake_bundle: Bundle
) -> None:
    done = invoke("--json", "--hash", "--quality", setup=FAKE, tiles=places, model=decided.root)
    counts = {name: said_yes(out, name) for name in ("abnormal", "review")}
    assert json.loads(record_beside(out).read_text())["decided"] == counts
    assert json.loads(done.stdout.splitlines()[-1])["report"]["decided"] == counts
    assert 0 < counts["abnormal"] < counts["review"] < 28
    line = f"operating point: {counts['abnormal']} of 28 predicted tiles called abnormal ("
    assert line in done.stderr
    assert f"), {counts['review']} for a person to review\n" in done.stderr
    plain = invoke("--overwrite", setup=FAKE, tiles=places, model=fake_bundle.root)
    assert "operating point" not in plain.stderr
    assert json.loads(record_beside(out).read_text())["decided"] is None


def test_rows_that_are_kept_and_rows_of_shards_are_counted_too(config: BatchConfig, tmp_path: Path) -> None:
    expected = predict_folder(config, setup=FAKE).decided
    assert expected == DecidedTiles(said_yes(config.out, "abnormal"), said_yes(config.out, "review"))
    assert predict_folder(replace(config, retry_failures=True), setup=FAKE).decided == expected
    shards = [replace(config, out=tmp_path / f"{part}.csv", shard=Part(part, 2)) for part in (1, 2)]
    for shard in shards:
        predict_folder(shard, setup=FAKE)
    assert merge_shards(tmp_path / "all.csv", [shard.out for shard in shards]).decided == expected


def test_a_failed_rows_words_are_no_decision() -> None:
    columns = table_columns(("a", "b"), ("quality", "sha256"), categories=("normal", "abnormal"))
    failed = [""] * len(columns)
    failed[columns.index("status")], failed[columns.index("error")] = "failed", "decode: a,yes,yes,ok,,,"
    rows = DecidedRows(columns)
    assert list(rows.counted([csv_line(failed)])) == [csv_line(failed)]
    assert (rows.abnormal, rows.review) == (0, 0)


def test_python_asks_for_one_too(config: BatchConfig, decided: Bundle) -> None:
    with fake_model(decided) as model:
        record = model.predict_folder(config.tiles, out=config.out, workers=1, abnormal_at=0.4)
    assert record.identity.operating_point == OperatingPoint(0.4, review_below=0.3, review_within=0.04)
    assert all((row["abnormal"] == "yes") == (row["prob_abnormal"] >= "0.4") for row in read_table(config.out))


def test_verify_decides_again_from_the_digits(config: BatchConfig) -> None:
    predict_folder(config, setup=FAKE)
    assert verify_table(config.out) == []
    path = record_beside(config.out)
    record = json.loads(path.read_text())
    assert record["identity"]["abnormal_at"] == 0.35
    path.write_text(json.dumps(record | {"identity": record["identity"] | {"abnormal_at": 0.9}}))
    changed = [line for line, row in enumerate(read_table(config.out), start=2) if row["abnormal"] == "yes"]
    assert {item.line for item in verify_table(config.out)} >= set(changed)
    assert {item.kind for item in verify_table(config.out)} == {"decision"}


def test_a_run_that_goes_on_knows_what_its_threshold_was_chosen_for(config: BatchConfig, decided: Bundle) -> None:
    made = predict_folder(config, setup=FAKE).identity
    assert config.contract(decided, made).operating_point == POINT
    assert replace(config, review_within=0.04).contract(decided, made).operating_point == POINT
    other = replace(config, abnormal_at=0.4).contract(decided, made).operating_point
    assert other == replace(POINT, abnormal_at=0.4, sensitivity=None)


@pytest.mark.parametrize(
    ("below", "within", "words"),
    [
        (0.3, 0.04, "confidence below 0.3, or probability between 0.31 and 0.39"),
        (0.3, 0.0, "confidence below 0.3"),
        (0.0, 0.9, "probability between 0 and 1"),
        (0.0, 0.0, "none"),
    ],
)
def test_what_cannot_be_reviewed_is_not_said(below: float, within: float, words: str) -> None:
    point = OperatingPoint(0.35, review_below=below, review_within=within)
    assert point_words(point) == f"abnormal from a probability of 0.35 on; review: {words}"


def test_what_is_asked_for_goes_before_the_bundles_own(config: BatchConfig) -> None:
    predict_folder(config, setup=FAKE)
    other = replace(config, out=config.out.with_name("other.csv"), abnormal_at=0.6, review_below=0.0, review_within=0.0)
    record = predict_folder(other, setup=FAKE)
    assert record.identity.operating_point == OperatingPoint(0.6)
    rows = read_table(other.out)
    assert [row["abnormal"] for row in rows if row["status"] == "ok"] == [
        "yes" if float(row["prob_abnormal"]) >= 0.6 else "no" for row in rows if row["status"] == "ok"
    ]
    assert {row["review"] for row in rows} == {"no", ""}
    changes = compare(Table.open(other.out), Table.open(config.out)).changes
    assert {change.kind for change in changes} == {"abnormal", "review"}
    moved = sum(0.35 <= float(row["prob_abnormal"]) < 0.6 for row in rows if row["status"] == "ok")
    assert sum(change.kind == "abnormal" for change in changes) == moved > 0


def test_a_bundle_without_one_keeps_its_columns_and_takes_what_is_asked(
    config: BatchConfig, fake_bundle: Bundle
) -> None:
    plain = replace(config, model=fake_bundle.root)
    predict_folder(plain, setup=FAKE)
    before = read_table(plain.out)
    assert "review" not in before[0]
    asked = replace(plain, out=config.out.with_name("asked.csv"), review_below=0.4)
    record = predict_folder(asked, setup=FAKE)
    assert record.identity.operating_point == OperatingPoint(0.5, review_below=0.4)
    now = read_table(asked.out)
    shared = [name for name in before[0] if name != "category"]
    assert [[row[name] for name in shared] for row in now] == [[row[name] for name in shared] for row in before]
    assert not compare(Table.open(asked.out), Table.open(plain.out)).changes, "only what both tables hold is compared"


def test_a_run_goes_on_at_the_operating_point_that_it_began_with(config: BatchConfig) -> None:
    begun = replace(config, abnormal_at=0.4)
    stopped: dict[str, Any] = {"stop_at": "assemble"}
    with pytest.raises(KeyboardInterrupt):
        predict_folder(begun, setup=run_setup(choose=choose_fake, **stopped))
    with pytest.raises(ResumeMismatchError, match=r"abnormal_at 0\.4, this one has 0\.5"):
        predict_folder(replace(config, abnormal_at=0.5), setup=FAKE)
    record = predict_folder(config, setup=FAKE)
    assert (record.identity.abnormal_at, record.identity.review_below) == (0.4, 0.3)
    assert verify_table(config.out) == []


def test_failed_tiles_are_predicted_again_at_the_tables_own(config: BatchConfig, tmp_path: Path) -> None:
    predict_folder(replace(config, abnormal_at=0.4), setup=FAKE)
    record = predict_folder(replace(config, retry_failures=True), setup=FAKE)
    assert record.identity.abnormal_at == 0.4
    with pytest.raises(ResumeMismatchError, match="abnormal_at"):
        predict_folder(replace(config, retry_failures=True, abnormal_at=0.5), setup=FAKE)


@pytest.mark.parametrize("at", [0.1234567, float("nan"), 2.0])
def test_what_can_be_no_operating_point_is_wrong_usage(config: BatchConfig, at: float) -> None:
    with pytest.raises(UsageError, match="abnormal_at"):
        predict_folder(replace(config, abnormal_at=at), setup=FAKE)


def test_the_options_and_a_config_file_reach_the_run(
    invoke: Callable[..., Any], decided: Bundle, places: Path, out: Path, tmp_path: Path
) -> None:
    (tmp_path / "run.toml").write_text("abnormal-at = 0.45\n")
    options = ("--config", str(tmp_path / "run.toml"), "--review-below", "0.2")
    done = invoke(*options, setup=FAKE, tiles=places, model=decided.root)
    assert done.exit_code == 3, done.output
    assert "abnormal from a probability of 0.45 on; review: confidence below 0.2, or" in done.stderr
    identity = json.loads(record_beside(out).read_text())["identity"]
    assert (identity["abnormal_at"], identity["review_below"], identity["review_within"]) == (0.45, 0.2, 0.04)
