"""One of several parts of a listing, `--shard 3/8`: a block of its whole batches.

Parts are blocks that follow each other, and batches keep their numbers, so a part's rows are those of the undivided
run, and the tables of all parts, one after another, are its table. Parts differ by one batch at most.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cervix_engine.errors import UsageError
from cervix_engine.words import counted

_WRITTEN = re.compile(r"([1-9][0-9]{0,5})/([1-9][0-9]{0,5})")


@dataclass(frozen=True, slots=True)
class Part:
    """The part `number`, from 1, of so many."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read such as `3/8`.

        Raises:
            UsageError: it is no part.
        """
        written = _WRITTEN.fullmatch(text)
        part = cls(int(written[1]), int(written[2])) if written else None
        if part is None or part.number > part.of:
            raise UsageError(f"expected such as 3/8, the third of eight, got {text!r}")
        return part

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def batches(self, count: int) -> range:
        """Which of so many batches it has.

        Raises:
            UsageError: there are fewer batches than parts.
        """
        if count < self.of:
            raise UsageError(
                f"--shard {self}: {counted(count, 'batch', 'batches')} cannot be cut into {self.of} shards"
            )
        return range((self.number - 1) * count // self.of, self.number * count // self.of)
