"""What ONNX Runtime's sessions are asked for on CPUs of different kinds."""

from __future__ import annotations

import onnxruntime
import pytest

from cervix_engine.backends.onnxruntime import exact_integers


@pytest.mark.parametrize("vnni", [True, False])
def test_integers_are_exact_and_slower_kernels_only_where_they_must_be(vnni: bool) -> None:
    flags = frozenset({"avx512f", *(["avx512_vnni"] if vnni else [])})
    options = exact_integers(onnxruntime.SessionOptions(), flags=flags)
    if vnni:
        with pytest.raises(RuntimeError, match="x64quantprecision"):
            options.get_session_config_entry("session.x64quantprecision")
    else:
        assert options.get_session_config_entry("session.x64quantprecision") == "1"
