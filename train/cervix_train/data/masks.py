"""Tells the masks of a data set from its tiles, by their names: a mask under a class would be learnt as a cell of it.

1. What lies in a folder for masks, such as `masks/`.
2. What is called a mask: `X_mask.png`, `X-mask.png`, `mask_X.png`.
3. `X-d.bmp` (as in Herlev), `X_seg.png`, `X_segmentation.png` and `X_gt.png`, where the tile `X` lies beside it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

FOLDERS = frozenset({"mask", "masks", "segmentation", "segmentations", "ground_truth", "groundtruth"})
_CALLED_MASK = re.compile(r"(.*[_\-. ])?masks?|masks?[_\-. ].*", re.IGNORECASE | re.DOTALL)
_BESIDE = re.compile(r"(.+)(?:-d|[_-](?:seg|segmentation|gt))", re.IGNORECASE | re.DOTALL)


def masks_among(paths: Collection[Path], *, class_folders: Iterable[str] = ()) -> set[Path]:
    """Those of `paths` that are masks; a folder that stands for a class, in lower case, is none for masks."""
    stems = {(path.parent, path.stem.lower()) for path in paths}
    folders = FOLDERS - set(class_folders)

    def is_mask(path: Path) -> bool:
        if folders.intersection(part.lower() for part in path.parts[:-1]) or _CALLED_MASK.fullmatch(path.stem):
            return True
        beside = _BESIDE.fullmatch(path.stem)
        return beside is not None and (path.parent, beside[1].lower()) in stems

    return {path for path in paths if is_mask(path)}
