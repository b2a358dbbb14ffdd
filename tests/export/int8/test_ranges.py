"""Ranges are observed on calibration tiles, and what rounds by them stays near."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from cervix_engine.bundle.calibration_tiles import calibration_pixels
from cervix_engine.values import Pixels
from cervix_export.graphs.compute import answers
from cervix_export.graphs.int8.graph import dequantised_weights, layers, quantised
from cervix_export.graphs.int8.ranges import BINS, Observed, Range
from export.int8.int8_graphs import Exported


def test_rounding_nothing_changes_nothing(exact: Any, golden_pixels: Pixels) -> None:
    same = quantised(exact, [], ranges={}, biases={})
    np.testing.assert_array_equal(answers(same, golden_pixels), answers(exact, golden_pixels))


def test_answers_stay_near(exact: Any, observed: dict[str, Observed], golden_pixels: Pixels) -> None:
    ranges = {name: item.best_range() for name, item in observed.items()}
    rounded = quantised(exact, layers(exact)[1:], ranges=ranges, biases={})
    difference = np.abs(answers(rounded, golden_pixels) - answers(exact, golden_pixels))
    assert 0 < difference.max() < 0.15


def test_a_range_cuts_an_outlier_off_where_that_costs_less_than_coarse_steps() -> None:
    counts = np.zeros(BINS, np.int64)
    counts[: BINS // 4] = 100_000
    counts[-1] = 1
    assert Observed(0.0, 8.0, counts, np.zeros(1)).best_range().high == pytest.approx(2.0, abs=0.1)
    counts[-1] = 100_000_000
    assert Observed(0.0, 8.0, counts, np.zeros(1)).best_range().high == pytest.approx(8.0, abs=0.1)


def test_a_range_is_unsigned_only_where_no_value_is_negative() -> None:
    counts = np.ones(BINS, np.int64)
    assert Observed(0.0, 4.0, counts, np.zeros(1)).best_range().low == 0
    signed = Observed(-1.0, 4.0, counts, np.zeros(1)).best_range()
    assert signed.low == -1.0
    assert Observed(0.0, 0.0, np.zeros(BINS, np.int64), np.zeros(1)).best_range() == Range(0.0, 1.0)


def test_what_is_observed_is_what_flows(exact: Any, observed: dict[str, Observed], exported: Exported) -> None:
    first = layers(exact)[1]
    watched = onnx.ModelProto()
    watched.CopyFrom(exact)
    watched.graph.output.append(onnx.helper.make_empty_tensor_value_info(first.data))
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = calibration_pixels(exported[0])[:16]
    (values,) = session.run([first.data], {session.get_inputs()[0].name: pixels})
    seen = observed[first.data]
    assert (seen.low, seen.high) == (values.min(), values.max())
    np.testing.assert_allclose(seen.mean, values.mean(axis=(0, 2, 3)), rtol=1e-5)
    assert seen.counts.sum() == values.size


def test_weights_have_one_scale_a_channel_and_lose_at_most_half_a_step() -> None:
    weights = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    weights[1] *= 1000
    weights[2] = 0
    error = np.abs(dequantised_weights(weights) - weights)
    steps = np.abs(weights).max(axis=(1, 2, 3)) / 127
    assert (error.max(axis=(1, 2, 3)) <= steps / 2 * 1.001).all()
