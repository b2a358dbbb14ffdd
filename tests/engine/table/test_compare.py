"""What changed between two tables, and what may not be compared."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cervix_engine.bundle.bundle import seal
from cervix_engine.cli.compare import main
from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract, OperatingPoint, TileClass
from cervix_engine.errors import UsageError
from cervix_engine.table.compare import TableComparison, compare
from cervix_engine.table.reader import Table
from engine.run.support import make_bundle
from engine.table.tables import Tile

WriteNamed = Callable[..., Path]

MEP = (0.1, 0.1, 0.6, 0.1, 0.1)
KOC = (0.1, 0.5, 0.3, 0.05, 0.05)
OLD = [
    Tile("a", probabilities=MEP),
    Tile("b"),
    Tile("c"),
    Tile("d", reason="empty: 0 bytes"),
    Tile("e"),
]
NEW = [
    Tile("a", probabilities=KOC),
    Tile("b"),
    Tile("c", reason="truncated: x"),
    Tile("d"),
    Tile("f"),
]


def _compare(new: Path, old: Path, labels: dict[str, str] | None = None) -> TableComparison:
    return compare(Table.open(new), Table.open(old), labels=labels)


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(item) for item in arguments])


def test_every_changed_decision_is_listed_with_its_margins(write_table: WriteNamed) -> None:
    result = _compare(write_table(NEW, "new.csv"), write_table(OLD, "old.csv"))
    assert (result.tiles, result.only_new, result.only_old) == (4, 1, 1)
    kinds = {change.path: (change.kind, change.old, change.new) for change in result.changes}
    assert kinds == {
        "a": ("class", "cervix_mep", "cervix_koc"),
        "c": ("failed", "cervix_mep", "truncated: x"),
        "d": ("predicted", "empty: 0 bytes", "cervix_mep"),
    }
    (first,) = (change for change in result.changes if change.path == "a")
    assert first.old_margin == pytest.approx(0.5)
    assert first.new_margin == pytest.approx(0.2)
    assert result.max_absdiff == pytest.approx(0.4)
    assert result.p_value is None


def test_order_does_not_matter(write_table: WriteNamed) -> None:
    old = write_table(OLD, "old.csv")
    straight, turned = _compare(write_table(NEW, "new.csv"), old), _compare(write_table(NEW[::-1], "turned.csv"), old)
    assert straight.to_json() == turned.to_json()


def test_a_table_equals_itself(write_table: WriteNamed) -> None:
    table = write_table(OLD, "old.csv")
    result = _compare(table, table)
    assert (result.changes, result.max_absdiff, result.only_new) == ([], 0.0, 0)


def test_labels_say_who_is_right(write_table: WriteNamed) -> None:
    labels = {"a": "cervix_koc", "b": "cervix_mep", "c": "cervix_mep", "d": "cervix_pab", "unknown": "cervix_mep"}
    result = _compare(write_table(NEW, "new.csv"), write_table(OLD, "old.csv"), labels)
    assert result.labelled == 4
    assert dict(result.right) == {(True, False): 1, (True, True): 1, (False, True): 1, (False, False): 1}
    assert result.p_value == 1.0
    many_old = [Tile(f"{at}", probabilities=MEP) for at in range(10)]
    many_new = [Tile(f"{at}", probabilities=KOC) for at in range(10)]
    answers = {f"{at}": "cervix_koc" for at in range(10)}
    better = _compare(write_table(many_new, "n.csv"), write_table(many_old, "o.csv"), answers)
    assert better.p_value == pytest.approx(2 / 2**10)


def test_what_cannot_be_compared_is_refused(write_table: WriteNamed) -> None:
    one, twice = write_table([Tile("a")], "one.csv"), write_table([Tile("a"), Tile("b"), Tile("b")], "twice.csv")
    with pytest.raises(UsageError, match="line 4: 'b' is already in line 3"):
        _compare(one, twice)
    with pytest.raises(UsageError, match="no path in common"):
        _compare(one, write_table([Tile("z")], "z.csv"))
    with pytest.raises(UsageError, match="none of the classes"):
        _compare(one, one, {"a": "other"})
    other = one.with_name("other.csv")
    other.write_text(one.read_text(encoding="utf-8").replace("prob_cervix_koc", "prob_x"), encoding="utf-8")
    with pytest.raises(UsageError, match="classes differ"):
        _compare(one, other)
    turned = (
        one.read_text(encoding="utf-8").replace("prob_cervix_koc", "x").replace("prob_cervix_mep", "prob_cervix_koc")
    )
    other.write_text(turned.replace(",x,", ",prob_cervix_mep,"), encoding="utf-8")
    with pytest.raises(UsageError, match="classes stand in another order"):
        _compare(one, other)


def test_the_command_prints_and_writes(write_table: WriteNamed, tmp_path: Path) -> None:
    new, old = write_table(NEW, "new.csv"), write_table(OLD, "old.csv")
    (tmp_path / "labels.csv").write_text("path,label\na,cervix_koc\nb,cervix_mep\n", encoding="utf-8")
    done = _run(new, old, "--labels", tmp_path / "labels.csv", "--out", tmp_path / "changes.csv")
    assert done.exit_code == 0, done.output
    assert "3 decisions changed" in done.stdout
    assert "a: cervix_mep -> cervix_koc   margin 0.500 -> 0.200   truly cervix_koc" in done.stdout
    assert "McNemar's exact test p = 1" in done.stdout
    with (tmp_path / "changes.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == ["a", "c", "d"]
    assert _run(new, old, "--out", tmp_path / "changes.csv").exit_code == 2
    counts = json.loads(_run(new, old, "--json").stdout)
    assert (counts["schema"], counts["changed"], counts["mcnemar_p"]) == ("cervix/comparison/1", 3, None)


@pytest.mark.parametrize("labels", [None, "a,b\n1,2\n", "\ufeff", "path,label\na,nothing\n", "path,label\na,\n"])
def test_wrong_labels_are_one_clear_line(write_table: WriteNamed, tmp_path: Path, labels: str | None) -> None:
    table = write_table(OLD, "old.csv")
    if labels is not None:
        (tmp_path / "labels.csv").write_text(labels, encoding="utf-8")
    done = _run(table, table, "--labels", tmp_path / "labels.csv")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)


def test_one_label_matches_and_a_model_without_labels_is_refused(write_table: WriteNamed, tmp_path: Path) -> None:
    table = write_table(OLD, "t.csv")
    (tmp_path / "labels.csv").write_text("path,label\na,cervix_mep\n", encoding="utf-8")
    assert (
        "1 of 1 label matches a tile in both tables\n" in _run(table, table, "--labels", tmp_path / "labels.csv").stdout
    )
    done = _run(table, table, "--model", tmp_path)
    assert done.exit_code == 2
    assert "name them with --labels" in done.stderr


def test_labels_are_counted_and_compared_in_one_normal_form(write_table: WriteNamed, tmp_path: Path) -> None:
    new, old = (
        write_table([Tile("caf\u00e9"), Tile("a,b")], "new.csv"),
        write_table([Tile("cafe\u0301"), Tile("a,b")], "old.csv"),
    )
    labels = 'path,label\ncafe\u0301,cervix_mep\n"a,b",cervix_koc\nother,cervix_mep\nunlabelled,\n'
    (tmp_path / "labels.csv").write_text(labels, encoding="utf-8-sig")
    done = _run(new, old, "--labels", tmp_path / "labels.csv")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("2 tiles in both tables; 0 decisions changed")
    assert "2 of 3 labels match a tile in both tables\n" in done.stdout
    assert "of 2 labelled tiles, new is right on 1 (50.00%)" in done.stdout


def test_names_that_only_their_normal_form_makes_equal_stay_two_tiles(write_table: WriteNamed) -> None:
    both = [Tile("cafe\u0301", probabilities=MEP), Tile("caf\u00e9", probabilities=KOC)]
    result = _compare(write_table(both[::-1], "new.csv"), write_table(both, "old.csv"))
    assert (result.tiles, result.changes, result.only_new, result.only_old) == (2, [], 0, 0)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ("path,label\na,cervix_dyk\na,cervix_koc\n", "line 3: 'a' is already in line 2: keep one of the two"),
        ("path,label\ncaf\u00e9,cervix_dyk\ncafe\u0301,cervix_dyk\n", "line 3: 'cafe\u0301' is already in line 2"),
        ("label,path\ncervix_dyk\ncervix_dyk,a\n", "line 2: 1 of 2 cells that the header has; complete the row"),
        ("path;label\na;cervix_dyk\n", "line 1: columns are separated by semicolons"),
        ("path,label\ntiles/a,cervix_dyk\n", "none of 1 labels is of a tile in both tables"),
    ],
)
def test_labels_that_could_mislead_are_refused(
    write_table: WriteNamed, tmp_path: Path, labels: str, words: str
) -> None:
    table = write_table(OLD, "old.csv")
    (tmp_path / "labels.csv").write_text(labels, encoding="utf-8")
    done = _run(table, table, "--labels", tmp_path / "labels.csv")
    assert done.exit_code == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


DYK = (0.5, 0.2, 0.1, 0.1, 0.1)
DECIDED = [
    *[Tile(f"d{at}", probabilities=DYK) for at in range(4)],
    Tile("d4", probabilities=MEP),
    Tile("d5", reason="empty: 0 bytes"),
    *[Tile(f"m{at}", probabilities=MEP) for at in range(3)],
    Tile("m3", probabilities=DYK),
    Tile("m4", reason="empty: 0 bytes"),
]


def _labels(folder: Path, tiles: Sequence[Tile] = DECIDED, **names: str) -> Path:
    """Labels by the first letter of a tile's name."""
    names = {"d": "cervix_dyk", "m": "cervix_mep", **names}
    lines = [f"{tile.path},{names[tile.path[0]]}" for tile in tiles]
    (folder / "labels.csv").write_text("\n".join(["path,label", *lines, ""]), encoding="utf-8")
    return folder / "labels.csv"


def test_labels_judge_what_each_operating_point_calls_abnormal(write_table: WriteNamed, tmp_path: Path) -> None:
    at_half = ModelContract(SIPAKMED_CLASSES, operating_point=OperatingPoint(0.5))
    low = ModelContract(SIPAKMED_CLASSES, operating_point=OperatingPoint(0.15))
    new, old = write_table(DECIDED, "new.csv", at_half), write_table(DECIDED, "old.csv", low)
    done = _run(new, old, "--labels", _labels(tmp_path))
    assert done.exit_code == 0, done.output
    # A failed tile is neither found nor cleared; Wilson's intervals.
    assert (
        "  new: sensitivity 66.7% (30.0% to 90.3%) of 6 abnormal tiles, specificity 60.0% (23.1% to 88.2%)"
        in done.stdout
    )
    assert (
        "  old: sensitivity 83.3% (43.6% to 97.0%) of 6 abnormal tiles, specificity 0.0% (0.0% to 43.4%)" in done.stdout
    )
    calls = json.loads(_run(new, old, "--labels", tmp_path / "labels.csv", "--json").stdout)["calls"]
    assert {name: calls["new"][name] for name in ("found", "abnormal", "cleared", "others")} == {
        "found": 4,
        "abnormal": 6,
        "cleared": 3,
        "others": 5,
    }
    assert calls["old"]["sensitivity"] == pytest.approx(5 / 6)


def test_only_a_table_with_an_operating_point_is_judged_by_it(write_table: WriteNamed, tmp_path: Path) -> None:
    decided = ModelContract(SIPAKMED_CLASSES, operating_point=OperatingPoint(0.5))
    new, old = write_table(DECIDED, "new.csv", decided), write_table(DECIDED, "old.csv")
    labels = _labels(tmp_path, m="cervix_koc")
    done = _run(new, old, "--labels", labels)
    assert (
        "  new: sensitivity 45.5% (21.3% to 72.0%) of 11 abnormal tiles, specificity unknown of 0 others" in done.stdout
    )
    assert "  old: " not in done.stdout
    calls = json.loads(_run(new, old, "--labels", labels, "--json").stdout)["calls"]
    assert (calls["old"], calls["new"]["specificity"]) == (None, None)
    assert "operating point" not in _run(old, old, "--labels", labels).stdout


def test_categories_that_no_row_tells_come_from_the_bundle(write_table: WriteNamed, tmp_path: Path) -> None:
    classes = (TileClass("a", "A", "abnormal"), TileClass("b", "B", "normal"), TileClass("c", "C", "benign"))
    contract = ModelContract(classes, operating_point=OperatingPoint(0.5))
    tiles = [Tile("d0", probabilities=(0.8, 0.1, 0.1)), Tile("m0", probabilities=(0.1, 0.8, 0.1))]
    table, labels = write_table(tiles, "t.csv", contract), _labels(tmp_path, tiles, d="a", m="b")
    untold = _run(table, table, "--labels", labels)
    assert untold.exit_code == 0
    assert "warning: what the operating points call abnormal is not judged: " in untold.stderr
    assert "never predicts c: name its bundle with --model" in untold.stderr
    bundle = make_bundle(tmp_path / "bundle").root
    contract.save(bundle / "contract.json")
    seal(bundle)
    told = _run(table, table, "--labels", labels, "--model", bundle)
    assert "  new: sensitivity 100.0% (20.7% to 100.0%) of 1 abnormal tile, specificity 100.0%" in told.stdout
