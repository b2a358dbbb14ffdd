"""The training report as a browser shows it: on a phone, in the dark, and on paper."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest

from engine.report.chromium import Page


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390], ids=["desktop", "phone"])
def test_it_fits_the_window_and_nothing_is_fetched(bundle: Path, page: Page, width: int, dark: bool) -> None:
    page.require_sound(bundle / "training/report.html", width=width, dark=dark)


def test_pictures_can_be_read_on_a_phone(bundle: Path, page: Page) -> None:
    page.open(bundle / "training/report.html", width=390, dark=True)
    letters = page.value(
        "[...document.querySelectorAll('figure svg text')].map(item => item.getBoundingClientRect().height)"
    )
    assert len(letters) > 60
    # Of letters set aslant, the height is more.
    assert min(letters) > 8, "in pixels of a screen that has two or three of its own for each"
    colours = set(
        page.value("[...document.querySelectorAll('figure svg text')].map(item => getComputedStyle(item).fill)")
    )
    assert "rgb(232, 237, 242)" in colours, "the page's own ink, in the dark"


def test_times_decisions_and_names_are_told(bundle: Path, page: Page) -> None:
    page.open(bundle / "training/report.html", width=1400)
    text = page.value("document.body.innerText")
    for words in ("Computed in FP32, 20", "operating point", "On test tiles", "called from Python", "Koilocytotic"):
        assert words in text
    assert page.value("document.querySelectorAll('.plots svg').length") == 6


def test_it_prints(bundle: Path, page: Page) -> None:
    page.open(bundle / "training/report.html", width=1400)
    printed = base64.b64decode(page.call("Page.printToPDF", printBackground=False)["data"])
    assert printed.startswith(b"%PDF")
    assert page.fits_paper()
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 14
