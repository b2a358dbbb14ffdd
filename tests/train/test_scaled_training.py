"""A model for scaled decoding is trained, recorded and proven on such pixels, and on no others."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.bundle.golden import GoldenSet
from cervix_engine.tiles.preprocess import preprocess
from cervix_keras.start import load_keras
from cervix_train.learning.config import TrainConfig
from cervix_train.training.train import train


def enlarged(drawn: Path, folder: Path) -> Path:
    """The drawn tiles as JPEGs of five times the input size, which are decoded at 1/4."""
    for path in drawn.rglob("*.png"):
        target = folder / path.parent.name / f"{path.stem}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        pixels = cv2.imread(str(path))
        assert pixels is not None
        cv2.imwrite(str(target), cv2.resize(pixels, (160, 160), interpolation=cv2.INTER_CUBIC))
    return folder


def test_training_and_golden_tiles_see_the_pixels_that_a_run_will_see(
    make_config: Callable[..., TrainConfig], drawn: Path, tmp_path: Path
) -> None:
    tiles = enlarged(drawn, tmp_path / "large")
    config = make_config(tmp_path, data=tiles, scaled_decoding=True, epochs=1)
    train(config)
    bundle = Bundle.open(config.out)
    assert json.loads((config.out / "contract.json").read_text(encoding="utf-8"))["scaled_decoding"] is True
    golden = GoldenSet.load(bundle)
    pixels = golden.pixels()
    whole = replace(bundle.contract, scaled_decoding=False)
    plain = np.stack([preprocess(bundle.read(tile.file), contract=whole) for tile in golden.tiles])
    assert (plain != pixels).any(axis=(1, 2, 3)).all()
    model = load_keras().models.load_model(config.out / "model.keras", safe_mode=True)
    np.testing.assert_allclose(model.predict_on_batch(pixels), golden.probabilities(), atol=1e-5)
    assert np.abs(model.predict_on_batch(plain) - golden.probabilities()).max() > 1e-5
