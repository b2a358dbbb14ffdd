"""Chooses what computes features: Keras, or ONNX Runtime or OpenVINO where these give the same ones sooner.

1. A store that holds all tiles serves them, whichever backend filled it; nothing is then opened.
2. A backend whose store holds some of the tiles goes on, so that one data set's features come from one backend.
3. Few tiles are Keras's: a conversion takes longer than it saves.
4. Otherwise those that are installed and agree with Keras run a short race, and the winner gets the tiles.
5. All of this is FP32. What is only learnt from may be computed in BF16 by OpenVINO, where that is asked for, it is
   nearer to Keras than BF16's own bound, and it wins a race against Keras; else rules 1 to 4 hold for it too.

What is tried here is closed again: whoever has tiles opens the chosen one for as long as they last.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cervix_engine.backends import Backend
from cervix_engine.errors import BackendError, ConversionError
from cervix_engine.values import Pixels
from cervix_train.features.backends import ExtractorBackends

log = logging.getLogger(__name__)

RACE_TILES = 16
RACE_ROUNDS = 3

Vectors = npt.NDArray[np.float32]
Rates = dict[str, float]


def race(backends: Mapping[str, Backend], pixels: Pixels) -> Rates:
    """Tiles per second of backends that are warm, by turns, so that a busy moment hurts all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in backends}
    for _ in range(RACE_ROUNDS):
        for name, backend in backends.items():
            started = time.perf_counter()
            backend.infer(pixels)
            seconds[name].append(time.perf_counter() - started)
    return {name: len(pixels) / max(statistics.median(taken), 1e-9) for name, taken in seconds.items()}


@dataclass(frozen=True, slots=True)
class Rules:
    """When another backend than Keras is taken.

    Attributes:
        pays_from: tiles. A conversion and a race cost a ResNet-101 about a minute, which 4 ms to 40 ms a tile must
            bring back.
        agreement: of the largest feature. Two FP32 runtimes that sum 100 layers in another order differ by about 1e-6
            of it; a wrong padding, a lost batch norm or half precision by 1e-3 and more.
        bf16_agreement: likewise. BF16 keeps 8 bits of every number. To a ResNet-101 that was trained on cells this does
            1e-2, and 3e-2 in the worst 16 of 3,602 tiles, about what one level of 255 less light does; a shift by one
            pixel does 1e-1, swapped channels 1.
        race: gives the rates of opened backends.
    """

    pays_from: int = 2000
    agreement: float = 1e-4
    bf16_agreement: float = 5e-2
    race: Callable[[Mapping[str, Backend], Pixels], Rates] = race


@dataclass(frozen=True, slots=True)
class Workload:
    """What is to be computed, and what is there already.

    Attributes:
        held: how many of the tiles each backend's store holds.
        tiles: how many are wanted in all.
        sample: a few that are missing, on which backends are compared, `uint8 (N, H, W, 3)`.
    """

    held: Mapping[str, int]
    tiles: int
    sample: Pixels

    @property
    def fullest(self) -> str:
        return max(self.held, key=lambda name: self.held[name])

    @property
    def begun(self) -> str | None:
        """In words, that a store holds some of the tiles; None where all are empty."""
        most = self.held[self.fullest]
        return f"{most} of {self.tiles} tiles are in its store already" if most else None


def choose_backend(backends: ExtractorBackends, workload: Workload, rules: Rules) -> str:
    """The name of the backend that is to compute what is missing, in FP32; a log line says which and why.

    Args:
        backends: of a frozen extractor.
        workload: its stores are those of `backends.names()`.
        rules: when which is taken.
    """
    name, reason = _fp32(backends, workload, rules)
    log.info("features by %s: %s", name, reason)
    return name


def choose_bf16(backends: ExtractorBackends, workload: Workload, rules: Rules) -> str | None:
    """The name of what computes in BF16; None, with a log line that says why, where it has to be FP32.

    Args:
        backends, rules: as `choose_backend`.
        workload: its stores are those of `backends.names("bf16")`.
    """
    try:
        name, reason = _bf16(backends, workload, rules)
    except _NotBf16 as declined:
        log.warning("the features of training tiles are not computed in BF16: %s", declined)
        return None
    log.info("features by %s: %s", name, reason)
    return name


def _fp32(backends: ExtractorBackends, workload: Workload, rules: Rules) -> tuple[str, str]:
    """The backend and why."""
    keras, others = backends.keras, [name for name in workload.held if name != backends.keras]
    if not workload.begun and workload.tiles < rules.pays_from:
        return keras, _too_few(workload)
    if not others:
        return keras, "no other runtime is installed together with tf2onnx"
    if workload.begun and workload.fullest == keras:
        return keras, workload.begun
    try:
        backends.convert()
    except ConversionError as error:
        return keras, str(error)
    with _Trial(backends, workload.sample) as trial:
        objections = [
            trial.admit(name, bound=rules.agreement) for name in ([workload.fullest] if workload.begun else others)
        ]
        if not trial.agreeing:
            return keras, "; ".join(filter(None, objections))
        if workload.begun:
            return workload.fullest, f"{workload.begun}; {trial.agreeing[workload.fullest]}"
        fastest, won = trial.fastest(rules)
        return fastest, "; ".join([won, *([trial.agreeing[fastest]] if fastest in trial.agreeing else [])])


class _NotBf16(Exception):  # noqa: N818 - no error, a decision with its reason
    """Why training tiles are computed in FP32."""


def _bf16(backends: ExtractorBackends, workload: Workload, rules: Rules) -> tuple[str, str]:
    """The backend and why.

    Raises:
        _NotBf16: it cannot be used.
    """
    if reason := backends.no_bf16():
        raise _NotBf16(reason)
    if not workload.begun and workload.tiles < rules.pays_from:
        raise _NotBf16(_too_few(workload))
    try:
        backends.convert()
    except ConversionError as error:
        raise _NotBf16(str(error)) from error
    name = workload.fullest
    with _Trial(backends, workload.sample) as trial:
        if objection := trial.admit(name, bound=rules.bf16_agreement):
            raise _NotBf16(objection)
        if workload.begun:
            return name, f"{workload.begun}; {trial.agreeing[name]}"
        # Keras may have a GPU.
        fastest, won = trial.fastest(rules)
        if fastest == backends.keras:
            raise _NotBf16(f"{fastest} is as fast, {won}")
        return name, f"{won}; {trial.agreeing[name]}"


def _too_few(workload: Workload) -> str:
    return f"{workload.tiles} tiles are too few for a conversion to pay"


class _Trial:
    """Keras and those backends whose features agree with its own, opened side by side until the choice is made.

    Attributes:
        agreeing: how nearly each agrees, by its name.
    """

    def __init__(self, backends: ExtractorBackends, sample: Pixels) -> None:
        self.agreeing: dict[str, str] = {}
        self._backends, self._sample = backends, sample
        self._open: dict[str, Backend] = {}

    def __enter__(self) -> _Trial:
        self._stack = ExitStack()
        keras = self._stack.enter_context(self._backends.backend(self._backends.keras))
        self._open[self._backends.keras] = keras
        self._expected = keras.infer(self._sample)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def admit(self, name: str, *, bound: float) -> str | None:
        """Let a backend compute the sample; None where it agrees, else why it is out."""
        try:
            backend = self._stack.enter_context(self._backends.backend(name))
            difference = relative_difference(backend.infer(self._sample), self._expected)
        except BackendError as error:
            return str(error)
        if not difference <= bound:
            return f"{name} differs by {difference:.1e} of the largest feature, over {bound:g}"
        self._open[name] = backend
        self.agreeing[name] = f"they agree to {difference:.0e} of the largest feature"
        return None

    def fastest(self, rules: Rules) -> tuple[str, str]:
        """The winner of a race, the first of equals, and by how much it won."""
        rates = rules.race(self._open, self._sample)
        fastest = max(self._open, key=lambda name: rates[name])
        beaten = ", ".join(f"{rate:.1f} of {name}" for name, rate in rates.items() if name != fastest)
        return fastest, f"{rates[fastest]:.1f} tiles/s against {beaten}"


def relative_difference(vectors: Vectors, reference: Vectors) -> float:
    """The largest difference as a share of the largest reference feature."""
    return float(np.abs(vectors - reference).max() / max(float(np.abs(reference).max()), 1e-12))
