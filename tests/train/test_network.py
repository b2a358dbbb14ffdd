from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cervix_engine.errors import BackendUnavailableError, UsageError
from cervix_keras.start import load_keras
from cervix_train.features.batchnorm import reestimate
from cervix_train.features.extractor import BACKBONES, build_extractor, extractor_digest, parse_weights
from cervix_train.learning.network import build_head, join

SIZE = (32, 32)


def random_pixels(count: int, *, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (count, *SIZE, 3)).astype(np.uint8)


def cnn(seed: int = 0) -> Any:
    load_keras(seed=seed)
    return build_extractor("cnn", input_size=SIZE, weights="none")


def test_the_head_is_the_papers() -> None:
    head = build_head(features=2048, classes=5)
    kinds = [(type(layer).__name__, layer.get_config()) for layer in head.layers[1:]]
    assert [kind for kind, _ in kinds] == ["Dense", "Dropout", "Dense", "Dropout", "Dense"]
    assert [config["units"] for kind, config in kinds if kind == "Dense"] == [256, 64, 5]
    assert [config["activation"] for kind, config in kinds if kind == "Dense"] == ["relu", "relu", "softmax"]
    assert [config["rate"] for kind, config in kinds if kind == "Dropout"] == [0.25, 0.25]
    assert head.count_params() == 2048 * 256 + 256 + 256 * 64 + 64 + 64 * 5 + 5


def test_raw_pixels_go_in_and_scaling_is_inside() -> None:
    extractor = cnn()
    assert extractor.inputs[0].dtype == "uint8"
    pixels = random_pixels(2)
    body = extractor.get_layer("cnn")
    expected = body.predict_on_batch(pixels.astype(np.float32) / 255)
    assert np.allclose(extractor.predict_on_batch(pixels), expected, atol=1e-6)


def test_the_joined_model_is_extractor_then_head() -> None:
    extractor, head = cnn(), build_head(features=128, classes=5)
    model = join(extractor, head)
    pixels = random_pixels(3)
    expected = head.predict_on_batch(extractor.predict_on_batch(pixels))
    assert np.allclose(model.predict_on_batch(pixels), expected, atol=1e-6)
    # Shared, not copied: what the head learns, the model knows.
    head.layers[-1].bias.assign(head.layers[-1].bias + np.arange(5.0))
    learnt = model.predict_on_batch(pixels)
    assert np.allclose(learnt, head.predict_on_batch(extractor.predict_on_batch(pixels)), atol=1e-6)
    assert not np.allclose(learnt, expected, atol=1e-2)


def test_a_frozen_extractor_has_nothing_to_learn() -> None:
    extractor, head = cnn(), build_head(features=128, classes=5)
    extractor.trainable = False
    model = join(extractor, head)
    assert [weight.path for weight in model.trainable_weights] == [weight.path for weight in head.trainable_weights]


def test_the_digest_knows_every_weight_and_nothing_else() -> None:
    digest = extractor_digest(cnn())
    assert extractor_digest(cnn()) == digest
    assert extractor_digest(cnn(seed=1)) != digest
    changed = cnn()
    statistics = changed.get_layer("cnn").get_layer("norm_4").moving_variance
    statistics.assign(statistics * 1.001)
    assert extractor_digest(changed) != digest


def test_reestimate_averages_batch_statistics() -> None:
    extractor = cnn()
    batches = [random_pixels(8, seed=seed) // (seed + 1) for seed in range(3)]
    seen: list[int] = []
    reestimate(extractor, batches, advance=seen.append)
    assert seen == [8, 8, 8]
    body = extractor.get_layer("cnn")
    # The first norm sees the first convolution's outputs, whatever the norms after it do.
    outputs = [body.get_layer("conv_1")(batch.astype(np.float32) / 255).numpy() for batch in batches]
    norm = body.get_layer("norm_1")
    assert np.allclose(norm.moving_mean, np.mean([out.mean(axis=(0, 1, 2)) for out in outputs], axis=0), atol=1e-5)
    assert np.allclose(norm.moving_variance, np.mean([out.var(axis=(0, 1, 2)) for out in outputs], axis=0), atol=1e-5)
    assert norm.momentum == 0.99


def test_reestimate_gives_the_eager_running_average_of_every_norm() -> None:
    """The graph against Keras run eagerly with the momentum that makes a running average; the last batch is short."""
    batches = [random_pixels(count, seed=seed) // (seed + 1) for seed, count in enumerate((8, 8, 5))]
    extractor, eager = cnn(), cnn()
    untouched = [weight.numpy() for weight in extractor.trainable_variables]
    reestimate(extractor, batches, advance=lambda _: None)
    norms = [layer for layer in eager.get_layer("cnn").layers if layer.name.startswith("norm_")]
    for number, batch in enumerate(batches):
        for norm in norms:
            norm.momentum = number / (number + 1)
        eager(batch, training=True)
    assert len(norms) == 4
    for norm in norms:
        got = extractor.get_layer("cnn").get_layer(norm.name)
        assert np.allclose(got.moving_mean, norm.moving_mean, rtol=1e-4, atol=1e-5)
        assert np.allclose(got.moving_variance, norm.moving_variance, rtol=1e-4, atol=1e-5)
    assert all(np.array_equal(a, b) for a, b in zip(untouched, extractor.trainable_variables, strict=True))


def test_reestimate_leaves_the_statistics_where_there_are_no_tiles() -> None:
    extractor = cnn()
    reestimate(extractor, [], advance=lambda _: None)
    assert not extractor.get_layer("cnn").get_layer("norm_1").moving_mean.numpy().any()


def test_reestimate_wakes_up_a_random_network() -> None:
    """Without it, features of different tiles hardly differ for their size."""
    extractor = cnn()
    pixels = random_pixels(16) // np.arange(1, 17, dtype=np.uint8)[:, None, None, None]
    before = extractor.predict_on_batch(pixels).std(axis=0).mean()
    reestimate(extractor, [pixels], advance=lambda _: None)
    extractor.trainable = False
    after = extractor.predict_on_batch(pixels).std(axis=0).mean()
    assert after > 3 * before


@pytest.mark.parametrize(
    ("value", "backbone", "expected"),
    [
        ("none", "resnet101", "none"),
        ("imagenet", "resnet101", "imagenet"),
    ],
)
def test_parse_weights(value: str, backbone: Any, expected: str) -> None:
    assert parse_weights(value, backbone=backbone) == expected


@pytest.mark.parametrize(
    ("value", "backbone", "words"),
    [
        ("imagenet", "cnn", "there are none for the cnn backbone"),
        ("model.h5", "resnet101", r"expected imagenet, none, or a file named \*\.weights\.h5"),
        ("model.keras", "resnet101", "expected imagenet, none, or a file"),
        ("none.weights.h5", "resnet101", "no such file"),
    ],
)
def test_parse_weights_refuses(value: str, backbone: Any, words: str, tmp_path: Path) -> None:
    path = value if value == "imagenet" else str(tmp_path / value)
    with pytest.raises(UsageError, match=words):
        parse_weights(path, backbone=backbone)


def test_weights_from_a_file(tmp_path: Path) -> None:
    source = cnn(seed=7)
    source.get_layer("cnn").save_weights(tmp_path / "a.weights.h5")
    load_keras(seed=0)
    loaded = build_extractor("cnn", input_size=SIZE, weights=tmp_path / "a.weights.h5")
    assert extractor_digest(loaded) == extractor_digest(source)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_keras_own_older_format_is_read_as_plain_arrays(tmp_path: Path) -> None:
    source = cnn(seed=7)
    body = source.get_layer("cnn")
    load_keras().saving.save_model(body, tmp_path / "model.h5")
    path = (tmp_path / "model.h5").rename(tmp_path / "cnn_notop.h5")
    loaded = build_extractor("cnn", input_size=SIZE, weights=path)
    assert extractor_digest(loaded) == extractor_digest(source)


@pytest.mark.parametrize("kind", ["other-network", "garbage"])
def test_weights_that_do_not_fit(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.weights.h5"
    if kind == "garbage":
        path.write_bytes(b"not HDF5")
    else:
        build_head(features=3, classes=2).save_weights(path)
    with pytest.raises(UsageError, match="does not fit the cnn backbone") as caught:
        build_extractor("cnn", input_size=SIZE, weights=path)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "size", "file"),
    [
        ("resnet101", 32, "resnet101_weights_tf_dim_ordering_tf_kernels_notop.h5"),
        ("resnet50", 32, "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"),
        ("mobilenetv2", 96, "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_96_no_top.h5"),
        ("mobilenetv2", 100, "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5"),
    ],
)
def test_imagenet_weights_without_a_network(
    backbone: Any, size: int, file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    load_keras()
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nobody listens
    # Where weights of an earlier download would be found.
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))
    before = socket.getdefaulttimeout()
    with pytest.raises(BackendUnavailableError, match="--weights imagenet cannot be had") as caught:
        build_extractor(backbone, input_size=(size, size), weights="imagenet")
    message = str(caught.value)
    assert "\n" not in message
    # The URL that Keras asked for ends in the very file that the advice names.
    assert f"/{file}" in message
    assert f"fetch {file} elsewhere and pass it with --weights FILE" in message
    assert socket.getdefaulttimeout() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "width", "branches", "end"),
    [
        ("resnet101", 2048, 33, "_3_bn"),
        ("resnet50", 2048, 16, "_3_bn"),
        ("mobilenetv2", 1280, 10, "_project_BN"),
    ],
)
def test_a_random_backbone_gives_useful_features(backbone: Any, width: int, branches: int, end: str) -> None:
    load_keras(seed=0)
    extractor = build_extractor(backbone, input_size=SIZE, weights="none")
    assert extractor.output.shape == (None, width)
    norms = [layer for layer in extractor.get_layer(backbone).layers if hasattr(layer, "gamma")]
    ends_of_branches = {norm.name for norm in norms if norm.gamma.numpy().mean() < 0.5}
    assert len(ends_of_branches) == branches
    assert all(name.endswith(end) for name in ends_of_branches)
    pixels = random_pixels(4) // np.arange(1, 5, dtype=np.uint8)[:, None, None, None]
    reestimate(extractor, [pixels], advance=lambda _: None)
    extractor.trainable = False
    features = extractor.predict_on_batch(pixels)
    assert np.isfinite(features).all()
    assert features.std(axis=0).mean() > 0.05


def test_every_backbone_that_can_be_asked_for_has_its_weights_told() -> None:
    assert {name: parse_weights(None, backbone=name) for name in BACKBONES} == {
        "resnet101": "imagenet",
        "resnet50": "imagenet",
        "mobilenetv2": "imagenet",
        "cnn": "none",
    }
