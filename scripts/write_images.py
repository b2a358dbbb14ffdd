"""Draws the pictures of docs/images/ anew: the pages that a reader of the tutorial gets, as Chromium shows them.

    PYTHONPATH=tests python scripts/write_images.py

Every tile is drawn, none is anybody's cell. Trains the tutorial's small network, so it takes some minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import cv2

from engine.report.chromium import PROGRAM, Page, open_browser

IMAGES = Path(__file__).parents[1] / "docs" / "images"

# As in docs/tutorial.md, with more tiles on fewer slides, and one that is cut off.
COMMANDS = """
python -m cervix_train.synthetic labelled --tiles 300 --slides 20 --seed 4
cervix-train labelled --weights none --backbone cnn --input-size 64 --epochs 20 --out bundle
cervix-export bundle
python -m cervix_train.synthetic slides --tiles 330 --slides 3 --seed 2
truncate --size 2000 "$(ls slides/slide_02/*.png | head -n 1)"
cervix-batch slides --model bundle --out preds.csv --quality || [ $? = 3 ]
cervix-report preds.csv --tiles slides --model bundle --heatmaps --top 12 --out report.html
"""
JPEG = [cv2.IMWRITE_JPEG_QUALITY, 70]


def make_pages(folder: Path) -> None:
    """Run the commands there."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["/bin/bash", "-exc", COMMANDS], cwd=folder, env={**os.environ, "PATH": path}, check=True)


def picture(page: Page, shown: Path, out: Path, *, width: int, height: int, dark: bool = False) -> None:
    """The top of a page, in a window of this width, as JPEG."""
    page.open(shown, width=width, dark=dark)
    page.screenshot(shot := shown.with_suffix(".png"))
    pixels = cv2.imread(str(shot))
    assert pixels is not None, shot
    out.write_bytes(cv2.imencode(".jpg", pixels[:height], JPEG)[1].tobytes())
    click.echo(f"{out}: {out.stat().st_size:,} bytes")


def pictures(page: Page, folder: Path) -> None:
    """All pictures, of the pages there."""
    report, training = folder / "report.html", folder / "bundle" / "training" / "report.html"
    picture(page, report, IMAGES / "report.jpg", width=1280, height=2420)
    picture(page, report, IMAGES / "report-phone.jpg", width=390, height=1300, dark=True)
    picture(page, training, IMAGES / "training-report.jpg", width=1280, height=1700)


@click.command()
def main() -> None:
    """Draw the pictures of docs/images/ anew."""
    if PROGRAM is None:
        raise click.ClickException("needs a browser: apt install chromium")
    with tempfile.TemporaryDirectory() as name, open_browser(Path(name) / "profile") as page:
        folder = Path(name)
        make_pages(folder)
        pictures(page, folder)


if __name__ == "__main__":
    main()
