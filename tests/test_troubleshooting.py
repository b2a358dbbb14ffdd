"""Every message that the troubleshooting page quotes is one that the code can say."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", PAGE, re.MULTILINE)
QUOTED = [message for message, _, _ in ROWS if not re.fullmatch(r"message|-+", message)]
ANYTHING = "…"


def _template(node: ast.AST) -> str | None:
    """The text of a string expression, `…` for each value that is put in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        # The log's own way: %s, %d, %.1f; a percent sign is doubled.
        return re.sub(r"%[-\d.]*[sdfg]", ANYTHING, node.value).replace("%%", "%")
    if isinstance(node, ast.JoinedStr):
        return "".join(
            ANYTHING if isinstance(part, ast.FormattedValue) else _template(part) or "" for part in node.values
        )
    return None


@cache
def _templates() -> frozenset[str]:
    modules = [path for room in ("engine", "edge", "export", "train") for path in (ROOT / room).rglob("*.py")]
    nodes = (node for path in modules for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    return frozenset(text for node in nodes if (text := _template(node)))


def test_the_page_was_understood() -> None:
    assert len(QUOTED) > 40
    assert len(QUOTED) == PAGE.count("\n| `")


@pytest.mark.parametrize("message", QUOTED)
def test_each_message_exists(message: str) -> None:
    wanted = message.replace("`", "").strip()
    assert any(wanted in template.replace("`", "") for template in _templates()), wanted


@pytest.mark.parametrize("option", sorted(set(re.findall(r"(?<![\w.])--[a-z][a-z-]+", PAGE))))
def test_each_option_exists(option: str) -> None:
    reference = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert option in reference or option in ("--gpus",), "Docker's own is the only one of another program"
