"""Where a run may compute: `--device auto`, `cpu`, `cuda`, `cuda:1`, or `cuda:0,1` for both at once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from cervix_engine import gpu
from cervix_engine.errors import BackendUnavailableError, UsageError

Kind = Literal["auto", "cpu", "cuda"]
ComputesOn = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class Device:
    """A kind of device, and of GPUs which ones, by their place in the driver's order; `auto` is whichever is best."""

    kind: Kind = "auto"
    ordinals: tuple[int, ...] = (0,)

    @classmethod
    def parse(cls, text: str, *, option: str = "--device ") -> Device:
        """Read what `option` asks for, which a refusal names so.

        Raises:
            UsageError: `text` is none of the forms above.
        """
        if text in get_args(Kind):
            return cls(text)  # type: ignore[arg-type]
        if not isinstance(text, str) or not re.fullmatch(r"cuda:[0-9]{1,3}(,[0-9]{1,3})*", text):
            raise UsageError(f"{option}{text}: expected auto, cpu, cuda, or GPUs by number such as cuda:0,1")
        ordinals = tuple(map(int, text.removeprefix("cuda:").split(",")))
        if len(set(ordinals)) < len(ordinals):
            raise UsageError(f"{option}{text} names a GPU twice")
        return cls("cuda", ordinals)

    def __str__(self) -> str:
        return self.kind if self == Device(self.kind) else f"cuda:{','.join(map(str, self.ordinals))}"

    def allows(self, computes_on: ComputesOn) -> bool:
        """Whether what computes there computes on such a device."""
        return self.kind in ("auto", computes_on)

    def gpus(self) -> tuple[gpu.Gpu, ...]:
        """Its GPUs; none for the CPU, or where it is `auto` and the driver offers none.

        Raises:
            BackendUnavailableError: one that is asked for is not there.
            UsageError: they are of different kinds, so that a row would depend on which of them computed it.
        """
        here = {} if self.kind == "cpu" else {found.ordinal: found for found in gpu.find_gpus()}
        if self.kind != "cuda":
            return tuple(here.values())[:1]
        if missing := [ordinal for ordinal in self.ordinals if ordinal not in here]:
            offered = f"offers {len(here)}" if here else "offers no NVIDIA GPU"
            raise BackendUnavailableError(f"--device {self}: there is no GPU {missing[0]}, the driver {offered}")
        chosen = tuple(here[ordinal] for ordinal in self.ordinals)
        if unlike := [other for other in chosen if not other.is_like(chosen[0])]:
            raise UsageError(f"--device {self}: {chosen[0].name} and {unlike[0].name} would answer differently")
        return chosen


ANY = Device()
