"""What is learnt from may be half-precision, on pixels and as features; an FP32 model is left behind all the same."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.errors import UsageError
from cervix_engine.gpu import Gpu, find_gpus
from cervix_engine.machine import cpu_has_bf16
from cervix_keras.start import load_keras
from cervix_train.features.extractor import build_extractor
from cervix_train.learning.config import TrainConfig
from cervix_train.learning.mixed import MixedPrecision, hardware_has_bf16, has_bf16, mixed_precision
from cervix_train.learning.network import build_head, join
from cervix_train.training.train import TrainReport, train

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture
def tuned(config: TrainConfig, tmp_path: Path) -> TrainConfig:
    return replace(config, out=tmp_path / "bundle", epochs=1, fine_tune_epochs=1, fine_tune_learning_rate=1e-3)


def tiny() -> Any:
    load_keras(seed=0)
    extractor = build_extractor("cnn", input_size=(32, 32), weights="none")
    return join(extractor, build_head(features=128, classes=5))


def policies(model: Any) -> set[str]:
    body = next(layer for layer in model.layers if hasattr(layer, "layers"))
    return {layer.dtype_policy.name for layer in body.layers}


def opened(config: TrainConfig) -> tuple[Bundle, Any]:
    bundle = Bundle.open(config.out)
    return bundle, load_keras().saving.load_model(bundle.root / "model.keras", safe_mode=True)


def recipe(bundle: Bundle) -> Any:
    return bundle.read_json("training/training.json", schema="cervix/training/1")["recipe"]


def test_the_backbone_computes_in_half_within_the_block_alone() -> None:
    model = tiny()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    before = model.predict_on_batch(pixels)
    with mixed_precision(model, wanted=True):
        assert policies(model) == {"mixed_bfloat16"}
        model.predict_function = None
        within = model.predict_on_batch(pixels)
        assert {weight.dtype for weight in model.weights if "seed" not in weight.path} == {"float32"}
    after = model.predict_on_batch(pixels)
    np.testing.assert_array_equal(after, before)
    assert policies(model) == {"float32"}
    assert 0 < np.abs(within - before).max() < 0.05


def test_an_error_within_the_block_leaves_fp32_too() -> None:
    model = tiny()
    with pytest.raises(RuntimeError, match="boom"), mixed_precision(model, wanted=True):
        raise RuntimeError("boom")
    assert policies(model) == {"float32"}


def test_what_is_not_wanted_changes_nothing() -> None:
    model = tiny()
    with mixed_precision(model, wanted=False):
        assert policies(model) == {"float32"}


@pytest.mark.parametrize(("has", "asked", "took"), [(True, None, True), (True, False, False), (False, None, False)])
def test_fine_tuning_takes_half_where_the_hardware_has_it(
    tuned: TrainConfig, has: bool, asked: bool | None, took: bool
) -> None:
    train(replace(tuned, mixed_precision=asked), has_bf16=lambda: has)
    bundle, model = opened(tuned)
    assert recipe(bundle)["mixed_precision"] is took
    assert recipe(bundle)["bf16_features"] is False
    assert policies(model) == {"float32"}


def test_only_fine_tuning_is_computed_in_half(tuned: TrainConfig, tmp_path: Path) -> None:
    """The head on features has no convolutions: its history is the same, that of fine-tuning is not."""
    histories = []
    for answer in ([True], [False]):
        own = replace(tuned, out=tmp_path / str(answer[0]))
        train(own, has_bf16=answer.pop)
        bundle = Bundle.open(own.out)
        histories.append([bundle.read(f"training/{name}.csv") for name in ("history", "history_fine_tune")])
    (head, fine), (head_again, fine_again) = histories
    assert head == head_again
    assert fine != fine_again


def test_half_that_the_hardware_has_not_is_refused(tuned: TrainConfig) -> None:
    with pytest.raises(UsageError, match="--mixed-precision: neither the CPU nor a GPU"):
        train(replace(tuned, mixed_precision=True), has_bf16=lambda: False)
    assert not tuned.out.exists()


@pytest.mark.parametrize("asked", [True, None, False])
def test_features_are_half_only_where_asked(
    config: TrainConfig, report: TrainReport, tmp_path: Path, asked: bool | None, caplog: pytest.LogCaptureFixture
) -> None:
    own = replace(config, out=tmp_path / "bundle", mixed_precision=asked)
    with caplog.at_level(logging.INFO, "cervix_train"):
        again = train(own, has_bf16=lambda: pytest.fail("no stage is on pixels"))
    bundle = Bundle.open(own.out)
    assert (recipe(bundle)["mixed_precision"], recipe(bundle)["bf16_features"]) == (False, bool(asked))
    # The store of FP32 holds them, so all is as if nobody had asked.
    assert ("all in its store already" in caplog.text) is bool(asked)
    assert (again.metrics, again.history) == (report.metrics, report.history)


def test_the_recipe_tells_what_was_half(config: TrainConfig) -> None:
    recipes = [
        config.recipe(MixedPrecision(stages, features)) for stages in (True, False) for features in (True, False)
    ]
    assert all(one != other for place, one in enumerate(recipes) for other in recipes[:place])


@pytest.mark.parametrize(
    ("gpus", "cpu", "has"),
    [
        (None, True, True),
        (None, False, False),
        (["8.0", "9.0"], False, True),
        (["7.5", "9.0"], True, False),
        (["10.0"], False, True),
        ([], True, False),
    ],
)
def test_what_tensorflow_computes_on_must_have_bf16(gpus: list[str] | None, cpu: bool, has: bool) -> None:
    assert has_bf16(None if gpus is None else [Gpu("a GPU", capability) for capability in gpus], cpu=cpu) is has


def test_without_a_gpu_the_cpu_is_asked() -> None:
    if find_gpus():
        pytest.skip("there is a GPU")
    assert hardware_has_bf16() is cpu_has_bf16()


def test_every_layer_learns_at_once(config: TrainConfig, tmp_path: Path) -> None:
    whole = replace(config, out=tmp_path / "bundle", epochs=2, whole=True, mixed_precision=False)
    report = train(whole)
    bundle, model = opened(whole)
    stages = bundle.read_json("training/training.json", schema="cervix/training/1")["stages"]
    assert [(stage["name"], stage["kept"]) for stage in stages] == [("all layers", True)]
    assert report.history.epochs == 2
    assert recipe(bundle)["whole"] is True
    # As a training of the head alone leaves the backbone: batch norms are re-estimated, nothing has learnt.
    frozen = replace(config, out=tmp_path / "frozen", epochs=1)
    train(frozen)
    begun = {"/".join(weight.path.split("/")[-2:]): weight.numpy() for weight in opened(frozen)[1].weights}
    learnt = {"/".join(weight.path.split("/")[-2:]): weight.numpy() for weight in model.weights}
    changed = {name for name, value in begun.items() if not np.array_equal(learnt[name], value)}
    assert {"conv_1/kernel", "norm_1/gamma", "norm_4/moving_mean"} <= changed
