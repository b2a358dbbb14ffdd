"""The tree drawn at the top of `errors.py` is the tree that the code raises, exit codes included."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass

import pytest

from cervix_engine import errors
from cervix_engine.errors import CervixError, ParityError, TileDecodeError, TileError, TileReadError, TileShapeError

_LINE = re.compile(r"^(?P<indent>[│├└─ ]*)(?P<name>[A-Z]\w+)(?:\((?P<builtin>\w+)\))?(?: +(?P<code>\d+|-))?(?:  .*)?$")


@dataclass(frozen=True)
class Drawn:
    """One line of the drawing."""

    parent: str
    builtin: str | None
    code: str | None


def drawn_tree() -> dict[str, Drawn]:
    tree: dict[str, Drawn] = {}
    above: dict[int, str] = {}
    lines = (errors.__doc__ or "").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("├─"))
    above[0] = lines[start - 1].split()[0]
    for line in lines[start:]:
        if not line.strip():
            break
        match = _LINE.match(line)
        assert match, f"a line that this test does not understand: {line!r}"
        depth = len(match["indent"]) // 3
        above[depth] = match["name"]
        tree[match["name"]] = Drawn(above[depth - 1], match["builtin"], match["code"])
    return tree


TREE = drawn_tree()
CLASSES = {name: item for name, item in inspect.getmembers(errors, inspect.isclass) if issubclass(item, CervixError)}


def test_every_error_is_drawn_once() -> None:
    assert TREE.keys() == CLASSES.keys() - {"CervixError"}
    assert len(TREE) > 15


@pytest.mark.parametrize("name", TREE)
def test_an_error_is_what_the_drawing_says(name: str) -> None:
    drawn, item = TREE[name], CLASSES[name]
    assert item.__bases__[0] is CLASSES[drawn.parent]
    assert [base.__name__ for base in item.__bases__[1:]] == ([drawn.builtin] if drawn.builtin else [])
    if drawn.code not in (None, "-"):
        assert item.exit_code == int(str(drawn.code))


@pytest.mark.parametrize("kind", [TileReadError, TileDecodeError, TileShapeError])
def test_a_tile_error_says_its_kind_in_front(kind: type[TileError]) -> None:
    error = kind("truncated", "the file ends inside its header")
    assert error.kind == "truncated"
    assert str(error) == "truncated: the file ends inside its header"


def test_a_read_error_is_an_os_error_that_names_no_file() -> None:
    error = TileReadError("unreadable", "Permission denied")
    assert isinstance(error, OSError)
    assert error.filename is None


def test_a_parity_error_carries_its_report() -> None:
    assert ParityError("too far", report={"max_absdiff": 0.5}).report == {"max_absdiff": 0.5}
    assert ParityError("too far").report == {}
