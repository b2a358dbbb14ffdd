"""The extrapolation of the paper's protocol prints every factor of what it says."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest

FP32, BF16 = "a backend", "a backend bf16"


@pytest.fixture
def protocol() -> ModuleType:
    return importlib.import_module("benchmarks.training.protocol_vs_keras")


def printed(protocol: ModuleType, capsys: pytest.CaptureFixture[str], *, bf16: bool) -> str:
    graphs = protocol.Graphs({FP32: None}, {BF16: None} if bf16 else {}, 30.0, 5.0, {})
    medians = {
        protocol.TRAINING: 10.0,
        protocol.VALIDATION: 25.0,
        protocol.KERAS: 20.0,
        protocol.of_graph(FP32): 50.0,
        protocol.of_graph(BF16): 100.0,
    }
    rates = {name: protocol.Rate(median, median, median) for name, median in medians.items()}
    protocol.extrapolate(rates, graphs, epoch_s=0.5)
    return capsys.readouterr().out


def test_both_ways_are_told_with_their_factors(protocol: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(protocol, capsys, bf16=True)
    # 50 x (17,500 / 10 + 3,750 / 25) + 3,750 / 25; then 25,000 / 20; 30 + 25,000 / 50; 35 + 17,500 / 100 + 7,500 / 50.
    assert "3750 tiles / 25.00 per s = 95150 s" in text
    assert "by Keras: 1250 s + 50 epochs x 0.50 s = 1275 s = 0.35 h; ratio 74.6" in text
    assert "the lesser: 530 s + 50 epochs x 0.50 s = 555 s = 0.15 h; ratio 171.4" in text
    assert "30 + 5 s of conversion + 17500 training tiles in BF16 / 100.00\n" in text
    assert "(3750 + 3750) tiles in FP32 / 50.00, both per s = 360 s" in text
    assert text.endswith("360 s + 50 epochs x 0.50 s = 385 s = 0.11 h; ratio 247.1\n")


def test_a_cpu_without_bf16_is_said(protocol: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(protocol, capsys, bf16=False).endswith("--mixed-precision:\n  not here: the CPU has no BF16\n")
