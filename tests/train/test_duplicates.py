from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cervix_train.data.duplicates import (
    Fingerprint,
    Pair,
    _turned,
    _turned_descriptors,
    find_pairs,
    fingerprint,
    groups_of_pairs,
)

Image = Any  # uint8 (height, width, 3), as OpenCV has it


def cropped(image: Image, share: float) -> Image:
    height, width = image.shape[:2]
    top, left = round(height * (1 - share) / 2), round(width * (1 - share) / 2)
    return image[top : height - top, left : width - left]


def lit(image: Image, factor: float) -> Image:
    return np.clip(image * factor, 0, 255).astype(np.uint8)


ALTERED: dict[str, Callable[[Image], Image]] = {
    "flipped": lambda image: image[:, ::-1],
    "upside down": lambda image: image[::-1],
    "a quarter": lambda image: np.rot90(image),
    "three quarters": lambda image: np.rot90(image, 3),
    "transposed": lambda image: image.transpose(1, 0, 2),
    "brighter": lambda image: lit(image, 1.2),
    "darker": lambda image: lit(image, 0.8),
    "cropped": lambda image: cropped(image, 0.9),
    "all at once": lambda image: lit(cropped(np.rot90(image[:, ::-1]), 0.95), 0.9),
}


def prints_of(paths: list[Path]) -> list[Fingerprint | None]:
    return [fingerprint(path) for path in paths]


def pairs_of(prints: list[Fingerprint | None]) -> list[Pair]:
    seen: list[int] = []
    pairs = find_pairs(prints, advance=seen.append)
    assert sum(seen) == sum(item is not None for item in prints)
    return pairs


@pytest.fixture(scope="module")
def originals(drawn: Path) -> list[Path]:
    return sorted(drawn.rglob("*.png"))


@pytest.mark.parametrize("kind", ALTERED)
def test_altered_copies_are_found(kind: str, originals: list[Path], tmp_path: Path) -> None:
    copies = []
    for path in originals[::2]:
        image = np.ascontiguousarray(ALTERED[kind](cv2.imread(str(path))))
        copies.append(tmp_path / f"{path.parent.name}_{path.stem}.jpg")
        cv2.imwrite(str(copies[-1]), image, [cv2.IMWRITE_JPEG_QUALITY, 80])
    pairs = pairs_of(prints_of([*originals, *copies]))
    found = {(pair.first, pair.second) for pair in pairs}
    planted = {(2 * place, len(originals) + place) for place in range(len(copies))}
    assert len(found & planted) >= 0.8 * len(planted)


def test_exact_copies_are_all_found_and_strangers_are_not(originals: list[Path], tmp_path: Path) -> None:
    copies = [tmp_path / f"{number}.png" for number in range(10)]
    for copy, path in zip(copies, originals[::3], strict=False):
        copy.write_bytes(path.read_bytes())
    pairs = pairs_of(prints_of([*originals, *copies]))
    exact = {(pair.first, pair.second) for pair in pairs if pair.exact}
    assert exact == {(3 * place, len(originals) + place) for place in range(10)}
    strangers = [pair for pair in pairs if pair.second < len(originals)]
    assert len(strangers) <= 0.005 * len(originals) * (len(originals) - 1) / 2


def test_the_descriptors_of_the_turns_are_those_of_the_turned_tiles(originals: list[Path]) -> None:
    item = fingerprint(originals[0])
    assert item is not None
    for turn, expected in enumerate(_turned_descriptors(item.descriptor)):
        low = cv2.dct(_turned(item.grey, turn))[:8, :8].copy()
        low[0, 0] = 0
        assert np.allclose(low.ravel() / np.linalg.norm(low), expected, atol=1e-4)


def test_what_cannot_be_decoded_keeps_its_place(originals: list[Path], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"broken")
    prints = prints_of([originals[0], tmp_path / "broken.png", tmp_path / "none.png", originals[0]])
    assert [item is None for item in prints] == [False, True, True, False]
    assert pairs_of(prints) == [Pair(0, 3, exact=True, correlation=1.0)]
    assert pairs_of([None]) == []


def test_groups_are_joined_through_others() -> None:
    pairs = [Pair(4, 5, True, 1.0), Pair(1, 4, False, 0.98), Pair(0, 2, False, 0.99), Pair(5, 6, True, 1.0)]
    assert groups_of_pairs(8, pairs) == [0, 1, 0, 3, 1, 1, 1, 7]
