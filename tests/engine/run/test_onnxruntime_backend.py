"""What ONNX Runtime's sessions are asked for on CPUs of different kinds."""

from __future__ import annotations

import onnxruntime
import pytest

from cervix_engine.backends import onnxruntime as backend


@pytest.mark.parametrize("vnni", [True, False])
def test_integers_are_exact_and_slower_kernels_only_where_they_must_be(
    monkeypatch: pytest.MonkeyPatch, vnni: bool
) -> None:
    monkeypatch.setattr(backend, "cpu_has_vnni", lambda: vnni)
    options = backend.exact_integers(onnxruntime.SessionOptions())
    if vnni:
        with pytest.raises(RuntimeError, match="x64quantprecision"):
            options.get_session_config_entry("session.x64quantprecision")
    else:
        assert options.get_session_config_entry("session.x64quantprecision") == "1"
