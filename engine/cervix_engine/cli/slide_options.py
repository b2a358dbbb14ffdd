"""The options of `cervix-batch` for whole slides, and the rules that they make."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cervix_engine.cli.shared.options import FILE, option, options
from cervix_engine.errors import UsageError

if TYPE_CHECKING:
    from cervix_engine.tiles.slides.grid import GridRules

DEFAULT_PX, DEFAULT_MPP = 224, 0.5

slide_options = options(
    option(
        "--whole-slides",
        is_flag=True,
        help="Read whole slides, of which TILES is one or a folder, and cut each into a grid of tiles.",
    ),
    option(
        "--tile-px", type=click.IntRange(1, 8192), help=f"Side of a slide's tiles in pixels. [default: {DEFAULT_PX}]"
    ),
    option(
        "--tile-um",
        type=click.FloatRange(min=0, min_open=True),
        help="Side of a slide's tiles in micrometres, in place of --tile-px.",
    ),
    option(
        "--mpp",
        type=click.FloatRange(0.02, 20),
        help=f"Resolution of a slide's tiles, in micrometres per pixel. [default: {DEFAULT_MPP}]",
    ),
    option(
        "--overlap",
        type=click.FloatRange(0, 0.9),
        help="Share of a slide's tile that the next one covers too, from 0 to 0.9. [default: 0]",
    ),
    option(
        "--slide-mpp",
        type=click.FloatRange(0.02, 20),
        help="Resolution of whole slides that do not say theirs, in micrometres per pixel.",
    ),
    option(
        "--tissue-mask/--no-tissue-mask",
        default=None,
        help="Leave out a slide's tiles that show no tissue, or take all. [default: --tissue-mask]",
    ),
    option(
        "--preview",
        type=FILE,
        metavar="DIR",
        help="Also write a picture of each whole slide that shows tissue and tiles.",
    ),
)

_OF_RULES = ("tile_px", "tile_um", "mpp", "overlap", "slide_mpp", "tissue_mask")


def of_whole_slides(all_options: dict[str, Any]) -> dict[str, Any]:
    """Take the options above out of all of a command's, and give what `BatchConfig` calls them.

    Raises:
        UsageError: an option is for whole slides only, or two of them contradict each other.
    """
    from cervix_engine.tiles.sources.slides import is_named_slide

    asked, preview = all_options.pop("whole_slides"), all_options.pop("preview")
    given = {name: value for name in _OF_RULES if (value := all_options.pop(name)) is not None}
    named = next(iter([*given, *(["preview"] if preview else [])]), None)
    if named and not (asked or is_named_slide(all_options["tiles"])):
        raise UsageError(f"--{named.replace('_', '-')} is for whole slides: pass --whole-slides, or name a slide")
    # A slide that is named alone is cut as an earlier run did, or by default.
    return {"grid": _rules(given) if asked or given else None, "previews": preview}


def _rules(given: dict[str, Any]) -> GridRules:
    from cervix_engine.tiles.slides.grid import GridRules, pixels_of

    if "tile_px" in given and "tile_um" in given:
        raise UsageError("--tile-px and --tile-um: expected one of them")
    mpp = given.get("mpp", DEFAULT_MPP)
    return GridRules(
        tile_px=pixels_of(given["tile_um"], mpp=mpp) if "tile_um" in given else given.get("tile_px", DEFAULT_PX),
        mpp=mpp,
        overlap=given.get("overlap", 0.0),
        slide_mpp=given.get("slide_mpp"),
        tissue_only=given.get("tissue_mask", True),
    )
