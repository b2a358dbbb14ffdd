"""A member of an archive, whatever its format."""

from __future__ import annotations

from typing import Literal, NamedTuple

# In place of where a member lies: why it cannot be read, as `kind: message`.
REFUSED = b"!"


class Member(NamedTuple):
    """What an archive says of a member.

    Attributes:
        name: as it is written there.
        size: of its bytes, uncompressed.
        where: it lies, for the format's `read`; or why it cannot be read, after `REFUSED`.
        kind: `special` is whatever is neither of the others.
    """

    name: bytes
    size: int
    where: bytes
    kind: Literal["file", "folder", "link", "special"] = "file"
