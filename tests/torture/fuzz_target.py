"""The decode wrapper under libFuzzer, which mutates bytes towards code of ours that it has not reached yet.

`python -m torture.fuzz_target COUNTS [LIBFUZZER OPTIONS] SEEDS`: on every input, `preprocess_into` must either fill its
slot or raise a `TileError` that says one line and leaves the slot as it was. Anything else, a signal included, ends the
fuzzing. What became of the inputs is written to COUNTS after every thousand: libFuzzer leaves without unwinding.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import atheris
import numpy as np

# Inputs that claim more pixels are refused by their header, like a tile beyond the real limit: decoding tens of
# millions of pixels for one mutated byte would leave time for a few thousand executions only.
AREA_LIMIT_PX = 2**18

_UNTOUCHED = 77
_COUNTED_EVERY = 1000


def main() -> None:
    counts_path, *options = sys.argv[1:]
    # Only ours: what OpenCV does inside is seen where it crashes.
    with atheris.instrument_imports(include=["cervix_engine.tiles"]):
        from cervix_engine.tiles import preprocess
        from cervix_engine.tiles.formats import header, tiff_pixels  # noqa: F401 - else it is loaded later, untouched
    header.MAX_AREA_PX = AREA_LIMIT_PX
    counts: Counter[str] = Counter()
    decode_or_refuse = judge(preprocess.preprocess_into, counts)

    def one_input(data: bytes) -> None:
        decode_or_refuse(data)
        if counts.total() % _COUNTED_EVERY == 0:
            Path(counts_path).write_text(json.dumps(counts), encoding="utf-8")

    atheris.Setup([sys.argv[0], *options], one_input)
    atheris.Fuzz()


def judge(preprocess_into: Callable[..., object], counts: Counter[str]) -> Callable[[bytes], None]:
    """A function that counts what becomes of an input, and raises where that is not allowed."""
    from dataclasses import replace

    from cervix_engine.errors import TileError
    from engine.run.support import CONTRACT

    contracts = (CONTRACT, replace(CONTRACT, exif_policy="apply"), replace(CONTRACT, scaled_decoding=True))
    slot = np.empty((*CONTRACT.input_size, 3), np.uint8)

    def decode_or_refuse(data: bytes) -> None:
        slot[...] = _UNTOUCHED
        try:
            preprocess_into(slot, data, contract=contracts[len(data) % len(contracts)])
            counts["ok"] += 1
        except TileError as error:
            counts[error.kind] += 1
            if not str(error).isprintable():
                raise AssertionError(f"more than one line: {error}") from error
            if (slot != _UNTOUCHED).any():
                raise AssertionError(f"the slot was touched: {error}") from error

    return decode_or_refuse


if __name__ == "__main__":
    main()
