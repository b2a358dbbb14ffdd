"""What libraries may not do by themselves: call home, or read and leave files in the user's home folder."""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def forbid_telemetry() -> None:
    """Turn off what ONNX Runtime and OpenVINO send; it must be called before they are imported.

    ONNX Runtime reads a variable. OpenVINO asks its package `openvino_telemetry`, which looks up a host and writes an
    identifier below HOME as soon as it is imported, and fails without a HOME; OpenVINO goes without it where it is not
    installed, and so does NNCF.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    # An import of a name whose entry is None fails as if there were no such package.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


@lru_cache(maxsize=1)
def keep_out_of_home() -> Path | None:
    """Give Keras and matplotlib a temporary folder in place of the home folder; call it before they are imported.

    Keras reads settings there that change a training, and writes them; matplotlib keeps a list of fonts. Keras
    imports matplotlib. A folder that the user names in MPLCONFIGDIR is used as it is.

    Returns:
        Where Keras would have kept what it downloads; None where the user has no home.

    Raises:
        OutputError: there is no folder for temporary files that can be written.
    """
    # Imported here: every command imports this module, and its `--help` is to answer at once.
    import atexit
    import shutil
    import tempfile
    from pathlib import Path

    from cervix_engine.files import scratch_errors

    with scratch_errors():
        scratch = tempfile.mkdtemp(prefix="cervix-")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    downloads = Path(os.environ.get("KERAS_HOME") or "~/.keras", "models")
    os.environ["KERAS_HOME"] = scratch
    os.environ.setdefault("MPLCONFIGDIR", scratch)
    try:
        return downloads.expanduser()
    except RuntimeError:
        return None
