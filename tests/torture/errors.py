"""Each call on the file system failing in turn, in every way, and the next start."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from engine.run.faults import DONE, Campaign, at_every_step, at_every_tile, at_every_write
from engine.run.injector import error
from engine.run.support import FINISHED

# What a run can do without: a folder that is there, a temporary file made in another way, looks that it repeats.
NEEDLESS = ("mkdir", "open .preds.csv.cervix", "stat")

NUMBERS = (errno.EIO, errno.EACCES, errno.ENOSPC)


@dataclass
class Failed:
    """What a campaign saw: calls that failed, by how, and where the rule did not hold."""

    calls: Counter[str] = field(default_factory=Counter)
    needless: int = 0
    violations: list[str] = field(default_factory=list)


def at_every_call(campaign: Campaign) -> Failed:
    """Let each step fail alone, the disk stay full from each on, each write be short, and each tile be unreadable."""
    return told(_ways(campaign), at_every_tile(campaign))


def told(ways: Iterable[tuple[str, Iterable[dict[str, Any]]]], tiles: Iterable[dict[str, Any]]) -> Failed:
    """Count the findings of each way to fail, and those of unreadable tiles, and tell what is not as it must be."""
    seen = Failed()
    for how, findings in ways:
        for finding in findings:
            seen.calls[how] += 1
            seen.needless += finding["code"] in DONE
            seen.violations += [f"{how} at {finding['step']}: {what}" for what in _wrong(finding)]
    for finding in tiles:
        seen.calls["EIO of a tile"] += 1
        if finding["code"] != 3 or len(finding["rows"]) != 1 or ",failed,unreadable: " not in finding["rows"][0]:
            seen.violations.append(f"at {finding['step']}: exit code {finding['code']}, rows {finding['rows']}")
    return seen


def _ways(campaign: Campaign) -> Iterator[tuple[str, Iterator[dict[str, Any]]]]:
    for number in NUMBERS:
        yield errno.errorcode[number], at_every_step(campaign, error(number), campaign.steps)
    yield "full from then on", at_every_step(campaign, error(errno.ENOSPC), campaign.changes, lasting=True)
    yield "short write", at_every_write(campaign)


def _wrong(finding: dict[str, Any]) -> Iterator[str]:
    again, table = finding["again"], finding["table"]
    if finding["code"] in DONE:
        if table != "new" or not finding["step"].startswith(NEEDLESS):
            yield f"done, and the table is {table}"
    elif table not in ("none", "new") or finding["stderr"].count("\n") != 1:
        yield f"the table is {table}, exit code {finding['code']}: {finding['stderr'][-500:]}"
    if (table != "none" and finding["verdict"] != "as written") or again["verdict"] != "as written":
        yield f"cervix-verify says {finding['verdict']}, and next {again['verdict']}"
    if again["table"] != "new" or set(again["left"]) != FINISHED:
        yield f"the next start leaves {again['left']}, the table is {again['table']}"
    if again["code"] not in DONE and (again["code"], table) != (2, "new"):
        yield f"the next start ends with {again['code']}: {again['stderr'][-500:]}"
