"""How many tiles may fail before a run stops: beyond it something is wrong with the input, not with a tile."""

from __future__ import annotations

from dataclasses import dataclass

from cervix_engine.errors import FailureBudgetExceeded, UsageError

# A share says nothing about a handful of tiles.
SHARE_AFTER_TILES = 1000


@dataclass(frozen=True, slots=True)
class FailureBudget:
    """At most `count` failed tiles, or at most `share` of the tiles seen once there are enough of them."""

    count: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, text: str) -> FailureBudget:
        """Read `100` as a count and `10%` as a share.

        Raises:
            UsageError: neither.
        """
        number = text.removesuffix("%")
        if number.isascii() and number.isdecimal():
            if number == text:
                return cls(count=int(number))
            if int(number) <= 100:
                return cls(share=int(number) / 100)
        raise UsageError(f"--max-failures {text}: expected a count such as 100, or a share such as 10%")

    def check(self, *, failed: int, seen: int) -> None:
        """Raises FailureBudgetExceeded where `failed` of `seen` tiles are too many."""
        over_count = self.count is not None and failed > self.count
        over_share = self.share is not None and seen >= SHARE_AFTER_TILES and failed > self.share * seen
        if over_count or over_share:
            allowed = f"{self.count}" if self.share is None else f"{self.share:.0%}"
            raise FailureBudgetExceeded(
                f"{failed} of {seen} tiles failed, more than --max-failures {allowed} allows: "
                "the run can go on with a larger one"
            )


DEFAULT_BUDGET = FailureBudget(share=0.10)
