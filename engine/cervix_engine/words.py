"""Words that agree with a count."""

from __future__ import annotations


def agreeing(count: int, singular: str, plural: str) -> str:
    """The word for so many."""
    return singular if count == 1 else plural


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Such as `1 tile`, `1200 tiles`, and `2 classes` where `plural` is given."""
    return f"{count} {agreeing(count, noun, plural or f'{noun}s')}"
