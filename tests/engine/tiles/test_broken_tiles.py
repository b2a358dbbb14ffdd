"""What is broken inside, or coded in a way that nothing here decodes, is refused by its name."""

from __future__ import annotations

import pytest

from cervix_engine.contract import ModelContract
from cervix_engine.errors import TileError
from cervix_engine.tiles.preprocess import decode

from .broken_tiles import BROKEN


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_tile_is_refused_by_name(name: str, contract: ModelContract) -> None:
    data, kind = BROKEN[name]
    with pytest.raises(TileError) as caught:
        decode(data, contract=contract)
    assert caught.value.kind == kind
    assert str(caught.value).isprintable()
