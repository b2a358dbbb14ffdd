"""Kernel times are kept where only the same GPU, CUDA and TensorRT find them again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cervix_engine.gpu import Gpu
from cervix_export.engines.timing_cache import keep_timing_cache, timing_cache_file, use_timing_cache

H100, A10 = Gpu("NVIDIA H100 80GB HBM3", "9.0"), Gpu("NVIDIA A10", "8.6")


class Config:
    """Stands for a builder's configuration, which here adds one time to those it was given."""

    def __init__(self) -> None:
        self.times = b""

    def create_timing_cache(self, times: bytes) -> bytes:
        return times

    def set_timing_cache(self, cache: bytes, *, ignore_mismatch: bool) -> None:
        assert not ignore_mismatch
        self.times = cache

    def get_timing_cache(self) -> Any:
        return self

    def serialize(self) -> bytes:
        return self.times + b"a time "


def test_the_name_holds_all_that_times_depend_on() -> None:
    caches = Path("models/.cervix-cache")
    names = {
        timing_cache_file(caches, gpu, cuda=cuda, tensorrt=tensorrt)
        for gpu in (H100, A10)
        for cuda in ("12.8", "13.0")
        for tensorrt in ("10.9.0", "11.0.0")
    }
    assert len(names) == 8
    expected = "tensorrt/nvidia-h100-80gb-hbm3-sm9.0-cuda13.0-tensorrt10.9.0.timing"
    assert caches / expected in names


def test_times_are_there_for_the_next_build(tmp_path: Path) -> None:
    file = timing_cache_file(tmp_path, H100, cuda="13.0", tensorrt="11.0.0")
    for builds in range(3):
        config = Config()
        use_timing_cache(config, file)
        assert config.times == builds * b"a time "
        keep_timing_cache(config, file)
