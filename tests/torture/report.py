"""What a campaign saw, as JSON for each part and one page for all of them."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SCHEMA = "cervix/torture/1"

# The parts, in the order in which they are told, each with what must hold.
RULES = {
    "points": "Killed at any step of writing its table, a run leaves the old table, none or the whole new one, each "
    "as its report says, and the next start ends with the bytes of an undisturbed run.",
    "errors": "Whichever call on the output or the listing fails, and however, the run ends with one line of error "
    "and no table or the whole one, or it was not in need of that call; the next start ends with the bytes of an "
    "undisturbed run. A tile that cannot be read is a row.",
    "kills": "As `points`, for `kill -9` at instants drawn evenly over a run's time, again and again until it is done.",
    "workers": "A run whose decode workers are killed, or the process that they are forked from, gives the bytes of an "
    "undisturbed one. Of a run that is killed neither a process nor its shared memory is left.",
    "cluster": "A run on a Ray cluster whose actors, nodes and drivers are killed gives the bytes of a local run, and "
    "leaves nothing over.",
    "kills-model": "As `kills`, with a bundle of its own and real tiles, each run a program.",
    "hostile": "Each file of a hostile folder becomes what is specified for it; a real JPEG that is cut is a failed "
    "row; no real tile is refused; no crash, no hang, and bounded memory.",
    "fuzz": "On any bytes, the decode wrapper fills its slot or raises a `TileError` that leaves it as it was.",
    "soak": "Over run after run in one process neither memory, file descriptors nor threads grow.",
}

# What was violated is told in full up to here, and only counted beyond.
TOLD = 20

Facts = Mapping[str, str | int | float]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a part saw.

    Attributes:
        facts: counts, seeds and sizes, in the order in which they are told.
        violations: where the part's rule did not hold; empty means that it held.
    """

    facts: Facts
    violations: tuple[str, ...]

    def __add__(self, other: Seen) -> Seen:
        return Seen({**self.facts, **other.facts}, self.violations + other.violations)


@dataclass(frozen=True, slots=True)
class PartReport:
    """One part of the campaigns, as it was run.

    Attributes:
        part: a key of `RULES`.
        command: what repeats this part.
        seen: what it saw.
        seconds: wall time.
    """

    part: str
    command: str
    seen: Seen
    seconds: float

    @property
    def held(self) -> bool:
        return not self.seen.violations

    def save(self, folder: Path) -> None:
        """Write `folder/<part>.json`, and tell all parts that lie there in `folder/report.md`."""
        folder.mkdir(parents=True, exist_ok=True)
        document = {"schema": SCHEMA, "part": self.part, "rule": RULES[self.part], "held": self.held, **asdict(self)}
        (folder / f"{self.part}.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        saved = (folder / f"{part}.json" for part in RULES)
        (folder / "report.md").write_text(page([load(path) for path in saved if path.exists()]), encoding="utf-8")


def load(path: Path) -> PartReport:
    """A part that was saved."""
    held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    seen = Seen(held["seen"]["facts"], tuple(held["seen"]["violations"]))
    return PartReport(held["part"], held["command"], seen, held["seconds"])


def page(parts: list[PartReport]) -> str:
    """All parts in Markdown."""
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    lines = ["# Torture", "", f"On {system}.", "", "| part | held | seconds |", "|---|---|---|"]
    lines += [f"| {part.part} | {_verdict(part)} | {part.seconds:.0f} |" for part in parts]
    for part in parts:
        lines += ["", f"## {part.part}: {_verdict(part)}", "", RULES[part.part], "", f"    {part.command}", ""]
        lines += ["| what | seen |", "|---|---|"]
        lines += [f"| {what} | {_shown(value)} |" for what, value in part.seen.facts.items()]
        lines += [f"- **violated**: {violation}" for violation in part.seen.violations[:TOLD]]
    return "\n".join(lines) + "\n"


def _verdict(part: PartReport) -> str:
    return "yes" if part.held else f"**no**, {len(part.seen.violations)} violations"


def _shown(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"
