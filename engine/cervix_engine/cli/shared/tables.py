"""Tables for people, as all commands draw them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def new_table(*heads: str, **given: Any) -> Table:
    """An empty table with these heads; `given` is as rich takes it, such as a title."""
    from rich.box import SIMPLE
    from rich.table import Table

    return Table(*heads, box=SIMPLE, **given)


def wide_console(width: int = 140) -> Console:
    """Standard output; where that is no terminal, of which rich would assume 80 columns, of this many characters."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=width)
