"""Two tables of the same tiles: every decision that changed, how sure each was, and who is right if that is known.

Where both hold the decisions of an operating point, a tile whose class is the same may still be called abnormal in one
and not in the other, or be one that a person must see in one alone. Each of these is a change of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar

from cervix_engine.contract import Category
from cervix_engine.errors import UsageError
from cervix_engine.table.decisions import yes_or_no
from cervix_engine.table.formats import write_csv
from cervix_engine.table.intervals import mcnemar_exact
from cervix_engine.table.names import composed, unescape_name
from cervix_engine.table.reader import Row, Table
from cervix_engine.table.summary import Share
from cervix_engine.tiles.csv_input import read_csv

COLUMNS = ("path", "slide_id", "change", "old", "old_margin", "new", "new_margin", "label")


@dataclass(frozen=True, slots=True)
class Change:
    """A tile one of whose decisions is another one now.

    Attributes:
        kind: `class`, `failed` (now), `predicted` (now); or the column: `category`, `abnormal`, `review`.
        old, new: the class or the failure's reason; the category; yes or no.
        old_margin, new_margin: first minus second probability; None where the tile failed.
        label: the true class where it is known.
    """

    path: str
    slide_id: str
    kind: str
    old: str
    old_margin: float | None
    new: str
    new_margin: float | None
    label: str | None

    @property
    def margin(self) -> float:
        """How surely the old table decided: a change at a large margin is the one to explain."""
        return self.old_margin or 0.0


@dataclass(slots=True)
class Calls:
    """What a table's operating point called the tiles whose category is known; a failed tile was not called rightly.

    Attributes:
        abnormal: tiles of an abnormal class, and `found` those of them that are called abnormal.
        others: tiles of any other class, and `cleared` those of them that are predicted and not called abnormal.
    """

    abnormal: int = 0
    found: int = 0
    others: int = 0
    cleared: int = 0

    def add(self, row: Row, *, is_abnormal: bool) -> None:
        if is_abnormal:
            self.abnormal += 1
            self.found += row.abnormal is True
        else:
            self.others += 1
            self.cleared += row.abnormal is False

    @property
    def sensitivity(self) -> Share:
        return Share(self.found, self.abnormal)

    @property
    def specificity(self) -> Share:
        return Share(self.cleared, self.others)

    def to_json(self) -> dict[str, Any]:
        """A share of no tiles is null."""
        shares = {"sensitivity": self.sensitivity, "specificity": self.specificity}
        return {
            **asdict(self),
            **{name: share.value if share.total else None for name, share in shares.items()},
            **{f"{name}_interval": list(share.interval) for name, share in shares.items()},
        }


@dataclass(slots=True)
class TableComparison:
    """What `compare` found.

    Attributes:
        tiles: rows in both tables; `only_new` and `only_old` are in one.
        changes: in the order of the new table.
        max_absdiff: largest difference of any probability of a tile that both predicted.
        labelled: tiles in both tables whose label is known; a failed one counts as wrong.
        right: how many of those are right, as (in both, only new, only old, in neither).
        new_calls, old_calls: what each table's operating point made of the labelled tiles; None where it has none, or
            where no categories are known.
    """

    tiles: int = 0
    only_new: int = 0
    only_old: int = 0
    changes: list[Change] = field(default_factory=list)
    max_absdiff: float = 0.0
    right: Counter[tuple[bool, bool]] = field(default_factory=Counter)
    new_calls: Calls | None = None
    old_calls: Calls | None = None

    schema: ClassVar[str] = "cervix/comparison/1"

    @property
    def labelled(self) -> int:
        return self.right.total()

    @property
    def p_value(self) -> float | None:
        """McNemar's exact test of whether both are right equally often; None without labels."""
        return mcnemar_exact(self.right[True, False], self.right[False, True]) if self.labelled else None

    def call(self, new: Row, old: Row, *, is_abnormal: bool) -> None:
        """Hold what both tables call a labelled tile against its category."""
        for calls, row in ((self.new_calls, new), (self.old_calls, old)):
            if calls:
                calls.add(row, is_abnormal=is_abnormal)

    def to_json(self) -> dict[str, Any]:
        pairs = {"both": (True, True), "only_new": (True, False), "only_old": (False, True), "neither": (False, False)}
        return {
            "schema": self.schema,
            "tiles": self.tiles,
            "only_new": self.only_new,
            "only_old": self.only_old,
            "changed": len(self.changes),
            "changes": dict(sorted(Counter(change.kind for change in self.changes).items())),
            "largest_margin": max((change.margin for change in self.changes), default=0.0),
            "max_absdiff": self.max_absdiff,
            "labelled": self.labelled,
            "right": {name: self.right[pair] for name, pair in pairs.items()},
            "mcnemar_p": self.p_value,
            "calls": {
                name: calls.to_json() if calls else None
                for name, calls in (("new", self.new_calls), ("old", self.old_calls))
            },
        }


def compare(
    new: Table,
    old: Table,
    *,
    labels: Mapping[str, str] | None = None,
    categories: Sequence[Category] = (),
) -> TableComparison:
    """Join two tables on `path`.

    Where both list their tiles in the same order, as `cervix-batch` does, nothing is held but the changes; a row
    whose partner is elsewhere waits for it.

    Args:
        new, old: the tables; their classes must be the same, in the same order.
        labels: true class of a tile by its name, as from `read_labels`.
        categories: of the classes, in their order, as from `Table.categories`; with these, labels also judge what the
            tables' operating points call abnormal.

    Raises:
        UsageError: other classes, a path twice in a table, a label that is no class, or no tile in common.
    """
    _require_same_classes(new, old)
    if unknown := sorted(set((labels or {}).values()) - set(new.class_names)):
        raise UsageError(f"label {unknown[0]!r} is none of the classes {', '.join(new.class_names)}")
    comparison = TableComparison()
    if labels and categories:
        comparison.new_calls, comparison.old_calls = (Calls() if table.is_decided else None for table in (new, old))
    abnormal = {name for name, category in zip(new.class_names, categories, strict=False) if category == "abnormal"}
    for mine, other in _pairs(new, old, comparison):
        label = labels.get(_name(mine)) if labels else None
        _count(comparison, mine, other, label, is_abnormal=label in abnormal)
    if not comparison.tiles:
        raise UsageError(f"{new.path} and {old.path} have no path in common: are both relative to one folder?")
    if labels and not comparison.labelled:
        raise UsageError(
            f"none of {len(labels)} labels is of a tile in both tables: a label's path is {next(iter(labels))!r}, a "
            f"tile's {next(new.rows()).path!r}; are both relative to one folder?"
        )
    return comparison


def _require_same_classes(new: Table, old: Table) -> None:
    if new.class_names == old.class_names:
        return
    both = f"{new.class_names} and {old.class_names}"
    if sorted(new.class_names) == sorted(old.class_names):
        raise UsageError(
            f"the tables' classes stand in another order: {both}; put the prob_ columns of one in the other's order"
        )
    raise UsageError(f"the tables' classes differ: {both}")


def read_labels(manifest: Path) -> dict[str, str]:
    """True classes from a CSV with the columns `path` and `label`, by the `composed` path, which is not escaped.

    Raises:
        UsageError: as `read_csv`; or no tile in it has a label.
    """
    rows = read_csv(manifest, ("path", "label"), any_bytes=True, same=composed)
    labels = {composed(row["path"]): row["label"] for _, row in rows if row["label"]}
    if not labels:
        raise UsageError(f"{manifest} has no label of any tile")
    return labels


def write_changes(path: Path, changes: list[Change]) -> None:
    """Write the changes as CSV, the surest old decision first.

    Raises:
        OutputError: it cannot be written.
    """
    write_csv(path, COLUMNS, map(_cells, sorted(changes, key=lambda change: -change.margin)))


def _name(row: Row) -> str:
    """What a row's tile is compared by: its path, not escaped, in one normal form."""
    return composed(unescape_name(row.path) if "%" in row.path else row.path)


def _pairs(new: Table, old: Table, comparison: TableComparison) -> Iterator[tuple[Row, Row]]:
    waiting_new: dict[str, Row] = {}
    waiting_old: dict[str, Row] = {}
    for mine, other in zip_longest(new.rows(), old.rows()):
        if mine is not None:
            waiting_new[mine.path] = mine
        if other is not None:
            waiting_old[other.path] = other
        for row in (mine, other):
            if row is not None and row.path in waiting_new and row.path in waiting_old:
                yield waiting_new.pop(row.path), waiting_old.pop(row.path)
    # Only then by normal form: a folder on Linux may hold two names that differ in nothing else.
    named = {_name(row): row for row in waiting_old.values()}
    for mine in list(waiting_new.values()):
        if (other := named.pop(_name(mine), None)) is not None:
            yield waiting_new.pop(mine.path), waiting_old.pop(other.path)
    comparison.only_new, comparison.only_old = len(waiting_new), len(waiting_old)


def _count(comparison: TableComparison, new: Row, old: Row, label: str | None, *, is_abnormal: bool) -> None:
    comparison.tiles += 1
    if label is not None:
        comparison.right[new.pred == label, old.pred == label] += 1
        comparison.call(new, old, is_abnormal=is_abnormal)
    if new.pred is not None and old.pred is not None:
        pairs = zip(new.probabilities, old.probabilities, strict=True)
        comparison.max_absdiff = max(comparison.max_absdiff, *(abs(a - b) for a, b in pairs))
    for kind, before, now in _changed(new, old):
        comparison.changes.append(Change(new.path, new.slide_id, kind, before, _margin(old), now, _margin(new), label))


def _changed(new: Row, old: Row) -> Iterator[tuple[str, str, str]]:
    """(What, old, new) of each decision that differs."""
    if new.pred != old.pred:
        kind = "failed" if new.pred is None else "predicted" if old.pred is None else "class"
        yield kind, _decision(old), _decision(new)
    if new.abnormal is None or old.abnormal is None:
        return
    if new.category != old.category:
        yield "category", str(old.category), str(new.category)
    for kind, before, now in (("abnormal", old.abnormal, new.abnormal), ("review", old.review, new.review)):
        if before != now:
            yield kind, yes_or_no(bool(before)), yes_or_no(bool(now))


def _decision(row: Row) -> str:
    return row.pred or row.error or "failed"


def _margin(row: Row) -> float | None:
    if row.pred is None:
        return None
    second, first = sorted(row.probabilities)[-2:]
    return first - second


def _cells(change: Change) -> list[str]:
    old, new = ("" if margin is None else f"{margin:.6f}" for margin in (change.old_margin, change.new_margin))
    return [change.path, change.slide_id, change.kind, change.old, old, change.new, new, change.label or ""]
