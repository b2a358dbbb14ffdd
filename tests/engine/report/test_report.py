"""The page as a browser shows it, and the command as a user calls it."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from cervix_engine.bundle.bundle import Bundle, seal
from cervix_engine.cli.report import main
from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract, OperatingPoint, TileClass
from cervix_engine.run.batch import BatchConfig, RunSetup, predict_folder
from engine.report.bundles import CPU, certified_bundle
from engine.report.chromium import Page
from engine.run.support import choose_fake, make_fake_bundle
from engine.table.tables import Tile, WriteTable

pytest.importorskip("jinja2", reason="needs jinja2: pip install '.[report]'")

# A slash in a name is a folder and a file in it.
HOSTILE = (
    "<script>alert(1)</script>.png",
    '"><img src=x onerror=alert(2)>.png',
    "'-alert(3)-'{{7*7}}${7*7}.png",
    "</script><svg onload=alert(4)>.png",
    "a\u202egnp.png",
)
MARKED_UP = "<b onclick=alert(5)>&amp;"
SLIDES = {"slide_A": 13, "slide_B": 12, MARKED_UP: 3, f"{MARKED_UP}/<script>alert(1)<": 1, f"{MARKED_UP}/<": 1}


def _draw_tile(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    _, data = cv2.imencode(".png", cv2.resize(pixels, (120, 100), interpolation=cv2.INTER_CUBIC))
    path.write_bytes(data.tobytes())


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(item) for item in arguments])


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tiles/`, a table that the engine made of it with a fake model, and `report.html`."""
    root = tmp_path_factory.mktemp("report")
    for seed in range(24):
        _draw_tile(root / f"tiles/slide_{'AB'[seed % 2]}/x{seed * 120}_y{seed % 3 * 100}.png", seed)
    for seed, name in enumerate(HOSTILE):
        _draw_tile(root / "tiles" / "<b onclick=alert(5)>&amp;" / name, 100 + seed)
    (root / "tiles/slide_A/broken.jpg").write_bytes(b"")
    model = make_fake_bundle(root / "model").root
    config = BatchConfig(tiles=root / "tiles", out=root / "preds.csv", model=model, batch_size=8, workers=1)
    predict_folder(config, setup=RunSetup(choose_fake))
    outputs = ("--out", root / "report.html", "--summary", root / "s.csv")
    done = _run(root / "preds.csv", "--tiles", root / "tiles", *outputs)
    assert done.exit_code == 0, done.output
    return root


def test_the_page_holds_every_part(run_folder: Path) -> None:
    text = (run_folder / "report.html").read_text(encoding="utf-8")
    for part in ("Classes", "Confidence", "Slides", "Maps", "Most suspicious", "Least certain", "Failures", "Facts"):
        assert f">{part}" in text
    assert "not a diagnosis" in text
    assert text.count("data:image/jpeg;base64,") == 2 * 29
    assert text.count("data:image/png;base64,") == 2, "one map for each slide whose names hold coordinates"
    assert "slide_A/broken.jpg" in text
    assert "fake 1" in text, "the run's facts"


def test_the_page_refers_to_nothing_outside_itself(run_folder: Path) -> None:
    text = (run_folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|@import|url\(", text)
    assert all(uri.startswith(("data:", "#")) for uri in re.findall(r'(?:src|href)="([^"]*)"', text))


def test_hostile_names_are_text(run_folder: Path) -> None:
    text = (run_folder / "report.html").read_text(encoding="utf-8")
    assert text.count("<script") == text.count("</script>") == 1
    assert not re.search(r"<[^>]*\son\w+=", re.sub(r'"[^"]*"', '""', text))
    assert "{{7*7}}" in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;.png" in text


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_the_browser_has_no_complaint(run_folder: Path, page: Page, width: int, dark: bool) -> None:
    page.require_sound(run_folder / "report.html", width=width, dark=dark)
    assert page.value("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    page.screenshot(shot := run_folder / "shot.png", whole=False)
    pixels = cv2.imread(str(shot))
    assert pixels is not None
    assert pixels.std() > 5, "something was drawn"


def _column(page: Page, at: int) -> Sequence[str]:
    rows = "[...document.querySelectorAll('#slide-rows tr')].filter(row => !row.hidden)"
    values: list[str] = page.value(f"{rows}.map(row => row.children[{at}].dataset.value)")
    return values


def test_slides_sort_by_each_column_and_back(run_folder: Path, page: Page) -> None:
    page.open(run_folder / "report.html", width=1280)
    click = "document.querySelectorAll('.sortable button')[{}].click()"
    page.value(click.format(1))
    falling = [int(value) for value in _column(page, 1)]
    page.value(click.format(1))
    rising = [int(value) for value in _column(page, 1)]
    assert falling == sorted(falling, reverse=True) != rising == sorted(rising)
    page.value(click.format(0))
    assert sorted(_column(page, 0)) == sorted(SLIDES)
    assert page.value("document.querySelectorAll('th[aria-sort]').length") == 1


def test_filters_hide_what_does_not_fit(run_folder: Path, page: Page) -> None:
    page.open(run_folder / "report.html", width=390)
    typing = "(i => { i.value = '%s'; i.dispatchEvent(new Event('%s')) })(document.querySelector('%s'))"
    page.value(typing % ("SLIDE_a", "input", 'input[data-filter="slide-rows"]'))
    assert list(_column(page, 0)) == ["slide_A"]
    assert page.value("""document.querySelector('output[data-count="slide-rows"]').textContent""") == "1 of 5"
    page.value(typing % ("cervix_koc", "change", 'select[data-class="suspicious-cards"]'))
    cards = "[...document.querySelectorAll('#suspicious-cards li')].filter(card => card.offsetParent)"
    shown = page.value(f"{cards}.map(card => card.dataset.class)")
    with (run_folder / "preds.csv").open(newline="", encoding="utf-8") as file:
        expected = [row["pred"] for row in csv.DictReader(file)].count("cervix_koc")
    assert shown == ["cervix_koc"] * expected


def test_summary_and_page_count_alike(run_folder: Path) -> None:
    with (run_folder / "s.csv").open(newline="", encoding="utf-8") as file:
        slides = {row["slide_id"]: row for row in csv.DictReader(file)}
    assert {name: int(row["tiles"]) for name, row in slides.items()} == SLIDES
    assert slides["slide_A"]["failed"] == "1"


def test_another_tables_run_file_is_not_believed(write_table: WriteTable, run_folder: Path) -> None:
    table = write_table([Tile("a.png")])
    table.with_name("preds.csv.run.json").write_bytes((run_folder / "preds.csv.run.json").read_bytes())
    out = table.with_name("r.html")
    assert _run(table, "--out", out).exit_code == 0
    text = out.read_text(encoding="utf-8")
    assert "another table" in text
    assert "fake 1" not in text


def test_a_table_cannot_make_the_page_show_other_files(write_table: WriteTable, tmp_path: Path) -> None:
    _draw_tile(tmp_path / "secret.png", 1)
    (tmp_path / "tiles").mkdir()
    (tmp_path / "tiles/link.png").symlink_to(tmp_path / "secret.png")
    names = ["../secret.png", str(tmp_path / "secret.png"), "link.png", "gone.png"]
    table = write_table([Tile(name) for name in names])
    out = tmp_path / "r.html"
    assert _run(table, "--tiles", tmp_path / "tiles", "--out", out).exit_code == 0
    text = out.read_text(encoding="utf-8")
    assert "data:image/jpeg" not in text
    assert text.count("not among these tiles") == 2 * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to make"),
        (["--out", "{}/none/r.html"], "no such folder"),
        (["--out", "{}/preds.csv"], "must all be different"),
        (["--out", "{}"], "is a folder"),
        (["--out", "{}/r.html", "--tiles", "{}/none"], "no such folder"),
        (["--out", "{}/r.html", "--coords", "{x}"], "expected {x} and {y}"),
        (["--out", "{}/r.html", "--model", "{}/none"], "no bundle"),
        (["--geojson", "{}/preds.csv.run"], "no tile"),
        (["--summary", "{}/old"], "--overwrite"),
    ],
)
def test_wrong_usage_is_one_line(write_table: WriteTable, arguments: list[str], message: str) -> None:
    table = write_table([Tile("a.png")])
    table.with_name("old").touch()
    done = _run(table, *(item.replace("{}", str(table.parent)) for item in arguments))
    assert done.exit_code in (1, 2)
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert sorted(path.name for path in table.parent.iterdir()) == ["old", "preds.csv"]


def _claim_bundle(run_file: Path, digest: str, certificate: str) -> None:
    run = json.loads(run_file.read_text(encoding="utf-8"))
    run["provenance"] |= {"bundle_digest": digest, "certificate": certificate}
    run_file.write_text(json.dumps(run), encoding="utf-8")


def test_the_certificate_is_told_for_the_runs_own_bundle_only(run_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install '.[cpu]'")
    mine = Bundle.open(certified_bundle(tmp_path / "mine", ("fp32", 20.0)))
    other = certified_bundle(tmp_path / "other", ("fp32", 30.0))
    for name in ("preds.csv", "preds.csv.run.json"):
        (tmp_path / name).write_bytes((run_folder / name).read_bytes())
    _claim_bundle(tmp_path / "preds.csv.run.json", mine.digest, f"certificates/model.onnx.{CPU}.fp32.json")
    assert _run(tmp_path / "preds.csv", "--out", tmp_path / "r.html", "--model", mine.root).exit_code == 0
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "keras 3, 9 tiles" in text
    assert "Not known" not in text
    refused = _run(tmp_path / "preds.csv", "--out", tmp_path / "s.html", "--model", other)
    assert (refused.exit_code, "another bundle" in refused.stderr) == (2, True)
    assert "name the bundle with --model" in (run_folder / "report.html").read_text(encoding="utf-8")


LONG = "S24_0123_" + "x" * 180
CLASSES = tuple(TileClass(item.name, f"{item.display_name} {'y' * 60}", item.category) for item in SIPAKMED_CLASSES)


@pytest.mark.parametrize("width", [1400, 390])
def test_long_names_and_decisions_fit_the_window(
    write_table: WriteTable, page: Page, tmp_path: Path, width: int
) -> None:
    contract = ModelContract(CLASSES, operating_point=OperatingPoint(0.3, review_below=0.5, review_within=0.1))
    names = [f"{LONG}/{'z' * 90}/x{at * 120}_y0.png" for at in range(5)]
    tiles = [Tile(name, LONG, np.roll((0.6, 0.1, 0.1, 0.1, 0.1), at).tolist()) for at, name in enumerate(names)]
    broken = Tile(f"{LONG}/{'z' * 90}/x600_y0.png", LONG, reason=f"{'kind' * 30}: it ends")
    table = write_table([*tiles, broken], contract=contract)
    (bundle := tmp_path / "bundle").mkdir()
    contract.save(bundle / "contract.json")
    seal(bundle)
    done = _run(table, "--out", tmp_path / "r.html", "--model", bundle)
    assert done.exit_code == 0, done.output
    page.open(tmp_path / "r.html", width=width)
    assert page.value("document.documentElement.scrollWidth") <= width
    text = page.value("document.body.innerText")
    for words in ("called abnormal", "to review", "1 failed", "5 tiles"):
        assert words in text
    called = page.value("[...document.querySelectorAll('.figure')].map(item => item.innerText)")
    assert "2\ncalled abnormal" in called
    # What a slide is flagged for lies within its table, and a tile's own name below its picture.
    inside = "chip => chip.getBoundingClientRect().right <= chip.closest('.scroll').getBoundingClientRect().right"
    chips = "[...document.querySelectorAll('#slides .flag')].filter(chip => chip.offsetParent)"
    assert page.value(f"{chips}.length") == 2
    assert page.value(f"{chips}.every({inside})")
    own = page.value("[...document.querySelectorAll('.card .path.own')].map(path => path.innerText)")
    assert own[0] == "x0_y0.png"
    # An axis with numbers, at the height of what they count.
    counts = page.value("[...document.querySelectorAll('.counts span')].map(item => item.innerText)")
    assert counts == ["6", "3", "0"]
    assert page.fits_paper()


def test_where_no_tile_was_predicted_there_is_no_share(write_table: WriteTable, tmp_path: Path) -> None:
    table = write_table([Tile("a/x0_y0.png", reason="empty: 0 bytes"), Tile("a/x9_y0.png", reason="empty: 0 bytes")])
    assert _run(table, "--out", tmp_path / "r.html").exit_code == 0
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "No tile was predicted." in text
    assert "0.0 %" not in text
    assert text.count('<td class="number">–</td>') == len(SIPAKMED_CLASSES)
