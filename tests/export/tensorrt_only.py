"""A program that runs commands on a machine with a simulated TensorRT and no other runtime, and prints what they did.

python tensorrt_only.py BUNDLE TILES OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from engine.backends.simulated_gpu import CPU_RUNTIMES, Machine


def commands(bundle: str, tiles: str, out: Path) -> dict[str, tuple[Any, list[str]]]:
    from cervix_engine.cli.batch import main as batch
    from cervix_engine.cli.bench import main as bench
    from cervix_engine.cli.doctor import main as doctor
    from cervix_export.cli.parity import main as parity

    model = ["--model", bundle]
    quick = ["--sweep", "1", "-b", "4", "-j", "2", "--count", "8", "--max-rounds", "5", "--round-seconds", "0"]
    return {
        "doctor": (doctor, ["--json", *model]),
        "batch": (batch, [tiles, "-o", str(out / "preds.csv"), *model]),
        "parity": (parity, ["--no-keras", "--json", str(out / "parity.json"), *model]),
        "bench": (bench, ["--scratch", str(out), "--json", *quick, *model]),
    }


def run(bundle: str, tiles: str, out: str) -> dict[str, Any]:
    done = {}
    with pytest.MonkeyPatch.context() as patch:
        Machine(alone=True).install(patch)
        for name, (command, arguments) in commands(bundle, tiles, Path(out)).items():
            result = CliRunner().invoke(command, arguments)
            done[name] = {"exit": result.exit_code, "stdout": result.stdout, "stderr": result.stderr}
        imported = [name for name in CPU_RUNTIMES if sys.modules.get(name)]
    return {**done, "imported": imported}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(*sys.argv[1:])))
