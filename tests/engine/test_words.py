"""Words agree with a count."""

from __future__ import annotations

import pytest

from cervix_engine.words import agreeing, counted


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 other files were"), (1, "1 other file was"), (2, "2 other files were")]
)
def test_a_count_and_its_words(count: int, words: str) -> None:
    assert f"{counted(count, 'other file')} {agreeing(count, 'was', 'were')}" == words


def test_a_plural_that_is_no_s() -> None:
    assert [counted(count, "batch", "batches") for count in (1, 2)] == ["1 batch", "2 batches"]
