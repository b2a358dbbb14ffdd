"""What encoders write is decoded, and codes that stand for nothing never reach the codec."""

from __future__ import annotations

import io
from contextlib import suppress

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cervix_engine.tiles.formats import lzw

CLEAR, END = 256, 257


def packed(codes: list[int], *, width: int = 9) -> bytes:
    bits = "".join(format(code, f"0{width}b") for code in codes)
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))


def by_libtiff(content: bytes) -> bytes:
    """The strip that libtiff writes for a row."""
    buffer = io.BytesIO()
    Image.frombytes("L", (len(content), 1), content).save(buffer, "TIFF", compression="tiff_lzw")
    with Image.open(buffer) as image:
        (at,), (size,) = image.tag_v2[273], image.tag_v2[279]  # type: ignore[attr-defined]
    return buffer.getvalue()[at : at + size]


@given(st.integers(1, 40_000), st.integers(1, 256), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_what_encoders_write_is_decoded(length: int, values: int, seed: int) -> None:
    content = np.random.default_rng(seed).integers(0, values, length).astype(np.uint8).tobytes()
    for encoded in (imagecodecs.lzw_encode(content), by_libtiff(content)):
        assert lzw.decode(bytes(encoded), length + 1) == content


@pytest.mark.parametrize(
    "codes",
    [
        [CLEAR, 300, 65, END],
        [CLEAR, 258, END],
        [CLEAR, 65, 66, CLEAR, 511, 65, END],
        [CLEAR, CLEAR, 65, CLEAR, 400, END],
        [65, 66, END],
    ],
)
def test_a_code_that_stands_for_nothing_is_refused_before_it_is_followed(codes: list[int]) -> None:
    with pytest.raises(ValueError, match="LZW"):
        lzw.decode(packed(codes), 100)


def test_a_table_that_runs_over_is_refused() -> None:
    with pytest.raises((ValueError, RuntimeError)):
        lzw.decode(bytes([0x80]) + bytes(10_000), 100_000)


@given(st.binary(max_size=3000))
@settings(max_examples=200, deadline=None)
def test_noise_is_decoded_or_refused(noise: bytes) -> None:
    with suppress(ValueError, RuntimeError):
        assert len(lzw.decode(b"\x80" + noise, 500)) <= 500
