"""Drawn tiles and one tiny training, made once: TensorFlow takes seconds to start and every fit costs more."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract
from cervix_keras.start import load_keras
from cervix_train.features.extractor import build_extractor
from cervix_train.learning.config import TrainConfig
from cervix_train.synthetic import write_drawn
from cervix_train.training.train import TrainReport, train

INPUT_SIZE = (32, 32)
TILES = 60


class _Interrupt(logging.Handler):
    def __init__(self, line: str) -> None:
        super().__init__()
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith(self._line):
            raise KeyboardInterrupt


@contextmanager
def interrupted_at(line: str) -> Iterator[None]:
    """Expect that the block is interrupted, as by Ctrl-C, when a line of the log begins with `line`."""
    logger, handler = logging.getLogger("cervix_train"), _Interrupt(line)
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@pytest.fixture(scope="session")
def contract() -> ModelContract:
    return ModelContract(classes=SIPAKMED_CLASSES, input_size=INPUT_SIZE)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 drawn tiles, one folder per class. Read only."""
    folder = tmp_path_factory.mktemp("drawn") / "cells"
    write_drawn(folder, tiles=TILES, seed=1)
    return folder


@pytest.fixture(scope="session")
def extractor(contract: ModelContract) -> Any:
    """A small frozen network with random weights, always the same. Not to be changed."""
    load_keras(seed=0)
    model = build_extractor("cnn", input_size=contract.input_size, weights="none")
    model.trainable = False
    return model


@pytest.fixture(scope="session")
def make_config(drawn: Path) -> Callable[..., TrainConfig]:
    """A small, fast training of the drawn tiles; keywords replace what a test is about."""

    def make(folder: Path, **changes: object) -> TrainConfig:
        values: dict[str, object] = {
            "data": drawn,
            "out": folder / "bundle",
            "classes": SIPAKMED_CLASSES,
            "backbone": "cnn",
            "weights": "none",
            "input_size": INPUT_SIZE,
            "epochs": 3,
            "learning_rate": 0.002,
            "batch_size": 16,
            "seed": 0,
            "cache": folder / "cache",
            "overwrite": False,
        }
        return TrainConfig(**{**values, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def config(make_config: Callable[..., TrainConfig], tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """What the finished training of `report` was asked. Its folders are read only."""
    return make_config(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="session")
def report(config: TrainConfig) -> TrainReport:
    """A finished training: its bundle lies at `config.out`, its features in `config.cache`."""
    return train(config)


@pytest.fixture(scope="session")
def bundle(config: TrainConfig, report: TrainReport) -> Path:
    """The finished training's bundle. Read only."""
    assert report.left_out == 0
    return config.out
