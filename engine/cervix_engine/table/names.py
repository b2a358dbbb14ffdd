"""File names in a table: any name Linux can hold survives, on one line and harmless in a spreadsheet."""

from __future__ import annotations

import os
import re
import unicodedata
from urllib.parse import unquote_to_bytes

# `%` itself, control characters (C0, DEL, C1), lone surrogates (bytes that are not UTF-8), and what a
# spreadsheet would take for a formula at the start of a cell.
_UNSAFE = re.compile(r"[%\x00-\x1f\x7f-\x9f\ud800-\udfff]|^[=+\-@]")


def escape_name(name: str) -> str:
    """Escape a path for a table: unsafe bytes become `%XX`. `name` holds undecodable bytes as surrogate escapes."""
    # Most names are plain, and every row has two: a few looks at all of a name cost a third of the expression.
    if name.isascii() and name.isprintable() and "%" not in name and name[:1] not in "=+-@":
        return name
    return _UNSAFE.sub(lambda match: "".join(f"%{byte:02X}" for byte in os.fsencode(match[0])), name)


def unescape_name(cell: str) -> str:
    """The inverse of `escape_name`, as a path that `open` takes."""
    return os.fsdecode(unquote_to_bytes(cell))


def composed(name: str) -> str:
    """A name in Unicode's normal form NFC, to be compared with others: macOS often writes `é` as two characters."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)
