"""TensorRT's measured kernel times, kept between builds, which they make much shorter.

Times hold for one GPU, CUDA and TensorRT version only: each has a file of its own. TensorRT-RTX keeps none, since it
times nothing while building.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from cervix_engine.files import atomic_path
from cervix_engine.gpu import Gpu


def timing_cache_file(caches: Path, gpu: Gpu, *, cuda: str | None, tensorrt: str) -> Path:
    """Where below the folder `caches` these times lie."""
    key = f"{gpu.name}-sm{gpu.compute_capability}-cuda{cuda}-tensorrt{tensorrt}"
    return caches / "tensorrt" / f"{slug(key)}.timing"


def slug(text: str) -> str:
    """Lower case, with a dash for all that a file name should not hold."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def use_timing_cache(config: Any, file: Path) -> None:
    """Give a builder's configuration the times of earlier builds, if there are any."""
    cache = config.create_timing_cache(file.read_bytes() if file.is_file() else b"")
    config.set_timing_cache(cache, ignore_mismatch=False)


def keep_timing_cache(config: Any, file: Path) -> None:
    """Write the times that a build ended with."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(file) as temporary:
        temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
