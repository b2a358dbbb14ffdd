"""Small C libraries between a command and the system: they note what is asked for, or refuse as odd systems do."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CASES = Path(__file__).parent / "cases"


def preloaded(name: str, folder: Path) -> dict[str, str]:
    """Compile `cases/<name>.c` into `folder`; the environment that puts it before the C library.

    The test is skipped where there is no C compiler.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip(f"needs a C compiler for {name}.c: neither cc nor gcc is on PATH")
    library = folder / f"{name}.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", library, CASES / f"{name}.c", "-ldl"], check=True, timeout=60
    )
    return {"LD_PRELOAD": str(library)}
