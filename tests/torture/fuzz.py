"""Starts the fuzzer with tiles of all formats as seeds, and reads what it did."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from torture.corpus import corpus, plant

MAX_INPUT_BYTES = 8192
SLOW_INPUT_S = 30
RSS_LIMIT_MB = 2048

# A fuzzer that stands still has hung in a decoder, and libFuzzer's own alarm did not get through to it.
HANGS_AFTER_S = 3600.0

SEED_FOLDERS = {"whole", "cut", "refused", "others", "claims", "transparent", "broken", "damaged"}


@dataclass(frozen=True, slots=True)
class Fuzzed:
    """What a fuzzer did.

    Attributes:
        executions: of the decode wrapper.
        outcomes: `ok`, and each kind of refusal.
        seeds: inputs that it began with.
        corpus: inputs that it kept, each of which reached something new.
        coverage: edges of `tiles/` that were reached.
        peak_mb: of memory.
        violations: the end of its output and the input's file, where it did not end by itself.
    """

    executions: int
    outcomes: Counter[str]
    seeds: int
    corpus: int
    coverage: int
    peak_mb: int
    violations: tuple[str, ...]


def fuzz(scratch: Path, *, executions: int, seed: int) -> Fuzzed:
    """Run the decode wrapper `executions` times; what broke it is kept in `scratch/broke-*`.

    Args:
        scratch: an empty folder.
        executions: a multiple of 1,000, for outcomes are counted by the thousand.
        seed: of libFuzzer, from 1 on: 0 would draw one.
    """
    seeds, counts = scratch / "seeds", scratch / "counts.json"
    tiles = [thing for thing in corpus(bombs=False) if thing.path.partition("/")[0] in SEED_FOLDERS]
    plant(seeds, tiles)
    options = {
        "runs": executions,
        "seed": seed,
        "max_len": MAX_INPUT_BYTES,
        "timeout": SLOW_INPUT_S,
        "rss_limit_mb": RSS_LIMIT_MB,
        "print_final_stats": 1,
        "close_fd_mask": 2,  # what decoders say of a million broken files
        "artifact_prefix": f"{scratch}/broke-",
    }
    given = [f"-{name}={value}" for name, value in options.items()]
    done = subprocess.run(
        [sys.executable, "-m", "torture.fuzz_target", str(counts), *given, str(seeds)],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=HANGS_AFTER_S,
    )
    said = done.stdout + done.stderr
    broke = [f"{path}: {path.read_bytes()[:60]!r}" for path in sorted(scratch.glob("broke-*"))]
    ended = [] if done.returncode == 0 else [f"ended with {done.returncode}: {said[-1500:]}"]
    return Fuzzed(
        executions=_last(r"stat::number_of_executed_units:\s+(\d+)", said),
        outcomes=Counter(json.loads(counts.read_text(encoding="utf-8")) if counts.exists() else {}),
        seeds=len(tiles),
        corpus=_last(r"corp: (\d+)", said),
        coverage=_last(r"cov: (\d+)", said),
        peak_mb=_last(r"stat::peak_rss_mb:\s+(\d+)", said),
        violations=(*broke, *ended),
    )


def _last(pattern: str, text: str) -> int:
    found = re.findall(pattern, text)
    return int(found[-1]) if found else 0
