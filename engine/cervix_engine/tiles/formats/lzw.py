"""LZW as TIFF has it (TIFF 6.0, section 13): imagecodecs decodes what has been found to be safe for it.

It follows the code behind a clear code without a look at whether that stands for anything, and reads memory that is
not its own (seen with 2025.3.30 and 2026.3.6). Where codes lie depends on how many there were since the last clear
code, and not on what they are. So all codes between two of these are found at once, and the first one is looked at.
"""

from __future__ import annotations

import imagecodecs
import numpy as np
import numpy.typing as npt

_CLEAR, _END = 256, 257
# Bits of each code, counted from a clear code: one more as soon as the table could not hold another with fewer.
_WIDTHS = np.repeat(np.arange(9, 13, dtype=np.uint32), (254, 512, 1024, 2051))
_ENDS = np.cumsum(_WIDTHS, dtype=np.int64)
_STARTS = _ENDS - _WIDTHS


def decode(encoded: bytes, limit: int) -> bytes | bytearray:
    """Decode at most `limit` bytes.

    Raises:
        ValueError, RuntimeError: these are no codes of LZW.
    """
    _check_codes(encoded)
    return imagecodecs.lzw_decode(encoded, out=limit)


def _check_codes(encoded: bytes) -> None:
    if len(encoded) < 2 or encoded[0] != _CLEAR >> 1 or encoded[1] & 0x80:
        raise ValueError("LZW does not begin with a clear code")
    window = _windows(encoded)
    at, end = 9, 8 * len(encoded)
    while at < end:
        fitting = np.searchsorted(_ENDS, end - at, side="right")
        bits = at + _STARTS[:fitting]
        codes = window[bits >> 3] << (bits & 7).astype(np.uint32) >> (32 - _WIDTHS[:fitting])
        special = np.flatnonzero((codes == _CLEAR) | (codes == _END))
        if fitting and codes[0] > _END:
            raise ValueError("LZW with a code that stands for nothing")
        if not len(special) and fitting == len(_STARTS):
            raise ValueError("LZW with more codes than its table holds")
        if not len(special) or codes[special[0]] == _END:
            return
        at = int(bits[special[0]]) + int(_WIDTHS[special[0]])


def _windows(encoded: bytes) -> npt.NDArray[np.uint32]:
    """The 32 bits that begin at each byte."""
    padded = np.frombuffer(encoded + b"\0\0\0", np.uint8).astype(np.uint32)
    return np.asarray(padded[:-3] << 24 | padded[1:-2] << 16 | padded[2:-1] << 8 | padded[3:], np.uint32)
