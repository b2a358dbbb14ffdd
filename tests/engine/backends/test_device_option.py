"""`--device` says where a run may compute: there, or not at all.

The machine's GPUs are simulated; see `simulated_gpu.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cervix_engine.backends.device import Device
from cervix_engine.backends.register import computes_on
from cervix_engine.backends.survey import survey
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.cli.batch import main
from cervix_engine.cli.bench import main as bench
from cervix_engine.errors import BackendUnavailableError, UsageError
from cervix_engine.gpu import Gpu
from cervix_engine.run.record import RunRecord
from engine.backends.simulated_gpu import DATA, ON_GPU, Machine, a10s, certified, make_engine_bundle
from engine.bundle.engine_marks import A10, L4
from engine.run.support import Invoke, read_table

MALFORMED = ("gpu", "", "CUDA", "cuda:", "cuda:a", "cuda:0,", "cuda:,0", "cuda:-1", "cuda:0;1", "cuda:0 ,1", "cpu:0")
TWICE_OR_STRANGE = ("cuda:0,0", "cuda:1,01", "cuda:1000", "auto,cpu", "cuda:0\n", "cuda:١")

# With which a run on the tiny bundle is a matter of seconds.
QUICK = ["--sweep", "1,4", "-b", "4", "-j", "2", "--count", "8", "--max-rounds", "5", "--round-seconds", "0"]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_engine_bundle(tmp_path / "bundle")


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    """Make it a machine with these GPUs."""

    def install(gpus: tuple[Gpu, ...] = (A10,), **options: Any) -> Machine:
        machine = Machine(gpus, **options)
        machine.install(monkeypatch)
        return machine

    return install


@pytest.fixture
def report(out: Path) -> Callable[[], RunRecord]:
    return lambda: RunRecord.load(out.with_name("preds.csv.run.json"))


def assert_refused(done: Result, code: int, *words: str, out: Path | None = None) -> None:
    assert done.exit_code == code, done.output
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert [word for word in words if word not in done.stderr] == []
    assert not (out and out.exists())


# ---- the words


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("auto", Device("auto")),
        ("cpu", Device("cpu")),
        ("cuda", Device("cuda", (0,))),
        ("cuda:0", Device("cuda", (0,))),
        ("cuda:3", Device("cuda", (3,))),
        ("cuda:1,0", Device("cuda", (1, 0))),
        ("cuda:0,1,2,3", Device("cuda", (0, 1, 2, 3))),
    ],
)
def test_what_is_written_is_what_is_meant(text: str, device: Device) -> None:
    assert Device.parse(text) == device
    assert Device.parse(str(device)) == device


@pytest.mark.parametrize("text", [*MALFORMED, *TWICE_OR_STRANGE])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--device"):
        Device.parse(text)


@pytest.mark.parametrize("text", ["gpu", "cuda:", "cuda:0,0", ""])
def test_anything_else_is_one_line_and_2(invoke: Invoke, bundle: Bundle, out: Path, text: str) -> None:
    assert_refused(invoke("--device", text), 2, "--device", out=out)
    assert_refused(CliRunner().invoke(bench, ["--model", str(bundle.root), "--device", text]), 2, "--device")


def test_it_may_come_from_a_file(invoke: Invoke, out: Path, tmp_path: Path, on: Callable[..., Machine]) -> None:
    machine = on()
    (tmp_path / "options.toml").write_text('device = "cuda"\nbatch-size = 8\n', encoding="utf-8")
    assert invoke("--config", str(tmp_path / "options.toml")).exit_code == 0
    assert machine.computed
    (tmp_path / "wrong.toml").write_text('device = "tpu"\n', encoding="utf-8")
    assert_refused(invoke("--config", str(tmp_path / "wrong.toml"), "--overwrite"), 2, "--device")


@pytest.mark.parametrize(("given", "dumped"), [((), "auto"), (("--device", "cuda:0,1"), "cuda:0,1")])
def test_it_is_dumped_as_it_is_written(invoke: Invoke, given: tuple[str, ...], dumped: str) -> None:
    done = invoke(*given, "--dump-config")
    assert done.exit_code == 0, done.output
    assert f'device = "{dumped}"' in done.stdout.splitlines()


@pytest.mark.parametrize("command", [main, bench])
def test_help_names_it(command: Any) -> None:
    assert "--device auto|cpu|cuda[:N,...]" in CliRunner().invoke(command, ["--help"]).stdout


# ---- which GPUs they are


@pytest.mark.parametrize("text", ["auto", "cpu"])
def test_without_a_gpu_there_is_the_cpu(on: Callable[..., Machine], text: str) -> None:
    on(())
    assert Device.parse(text).gpus() == ()


def test_gpus_come_in_the_order_in_which_they_are_named(on: Callable[..., Machine]) -> None:
    on(a10s(3))
    assert [gpu.ordinal for gpu in Device.parse("cuda:2,0").gpus()] == [2, 0]
    assert Device.parse("auto").gpus() == Device.parse("cuda").gpus() == (A10,)
    assert Device.parse("cpu").gpus() == ()


def test_a_gpu_is_known_by_its_number_where_another_one_does_not_answer(on: Callable[..., Machine]) -> None:
    """The driver counts a GPU that it cannot name; what is called 1 is still 1."""
    second = replace(A10, ordinal=1)
    on((A10, A10), provider=False).gpus = (second,)
    assert Device.parse("cuda:1").gpus() == (second,)
    with pytest.raises(BackendUnavailableError, match="there is no GPU 0"):
        Device.parse("cuda:0").gpus()


def test_backends_belong_to_one_kind(bundle: Bundle, on: Callable[..., Machine]) -> None:
    on()
    for text, gpu, cpu in (("auto", True, True), ("cuda", True, False), ("cpu", False, True)):
        ways = survey(bundle, device=Device.parse(text)).runnable
        kinds = {computes_on(way.combination.backend) for way in ways}
        assert (("cuda" in kinds), ("cpu" in kinds)) == (gpu, cpu)


# ---- a run


def test_cuda_without_a_gpu_is_never_a_run_on_the_cpu(invoke: Invoke, out: Path, on: Callable[..., Machine]) -> None:
    for gpus, text in (((), "cuda"), ((), "cuda:0"), ((), "cuda:0,1")):
        on(gpus)
        assert_refused(invoke("--device", text), 1, f"--device {Device.parse(text)}", "no NVIDIA GPU", out=out)
        assert_refused(invoke("--device", text, "--dry-run"), 1, "no NVIDIA GPU")


def test_cuda_where_nothing_runs_on_it_is_never_a_run_on_the_cpu(
    invoke: Invoke, out: Path, on: Callable[..., Machine]
) -> None:
    machine = on((L4,), provider=False)  # for which there is no engine
    assert_refused(invoke("--device", "cuda"), 1, "no CUDA provider: pip install '.[gpu]'", out=out)
    assert (machine.computed, machine.loaded) == ([], [])


def test_a_gpu_that_is_not_there_is_named(invoke: Invoke, out: Path, on: Callable[..., Machine]) -> None:
    on(a10s(2))
    for text in ("cuda:2", "cuda:0,2", "cuda:2,1"):
        assert_refused(invoke("--device", text), 1, f"--device {text}", "no GPU 2", "offers 2", out=out)


def test_unlike_gpus_are_refused(invoke: Invoke, out: Path, on: Callable[..., Machine]) -> None:
    machine = on((A10, replace(L4, ordinal=1), replace(A10, ordinal=2)))
    assert_refused(invoke("--device", "cuda:0,1"), 2, "--device cuda:0,1", A10.name, L4.name, out=out)
    assert machine.loaded == []
    assert invoke("--device", "cuda:0,2").exit_code == 0


def test_cpu_on_a_machine_with_a_gpu_is_a_run_on_the_cpu(
    bundle: Bundle, tiles: Path, out: Path, on: Callable[..., Machine], report: Callable[[], RunRecord]
) -> None:
    machine = on()
    sealed, _ = certified(bundle, ON_GPU["tensorrt"])

    def run(*options: str) -> Result:
        return CliRunner().invoke(main, [str(tiles), "-o", str(out), "--model", str(sealed.root), *options])

    assert run("--device", "cpu").exit_code == 0
    assert report().backend.backend == "onnxruntime-cpu"
    assert (machine.computed, machine.loaded) == ([], [])
    assert run("--overwrite").exit_code == 0
    assert report().backend.backend == "tensorrt"


@pytest.mark.parametrize(
    ("device", "backend"),
    [
        ("cpu", "tensorrt"),
        ("cpu", "tensorrt-rtx"),
        ("cpu", "onnxruntime-cuda"),
        ("cuda", "onnxruntime-cpu"),
        ("cuda", "openvino"),
    ],
)
def test_a_backend_of_the_other_kind_is_refused(
    invoke: Invoke, out: Path, on: Callable[..., Machine], device: str, backend: str
) -> None:
    machine = on()
    done = invoke("--device", device, "--backend", backend)
    assert_refused(done, 2, f"--device {device}: {backend} does not compute there", out=out)
    assert (machine.computed, machine.loaded) == ([], [])


def test_cuda_takes_the_graph_or_the_engine(
    invoke: Invoke, on: Callable[..., Machine], report: Callable[[], RunRecord]
) -> None:
    on()
    assert invoke("--device", "cuda").exit_code == 0
    assert (report().backend.backend, report().backend.precision) == ("onnxruntime-cuda", "fp32")
    machine = on(provider=False)
    done = invoke("--device", "cuda", "--overwrite")
    assert done.exit_code == 0, done.stderr
    assert (report().backend.backend, machine.loaded) == ("tensorrt", [DATA])


def test_an_engine_is_taken_on_the_gpu_for_which_it_was_built(
    invoke: Invoke, out: Path, on: Callable[..., Machine], report: Callable[[], RunRecord]
) -> None:
    machine = on((L4, replace(A10, ordinal=1)))
    refused = invoke("--device", "cuda", "--backend", "tensorrt")
    assert_refused(refused, 5, "was built for NVIDIA A10, here is NVIDIA L4", out=out)
    assert invoke("--device", "cuda:1", "--backend", "tensorrt").exit_code == 0
    assert report().backend.device == "NVIDIA A10"
    assert {gpu for gpu, _ in machine.computed} == {1}


def test_a_certificate_is_for_the_gpu_that_is_asked_for(
    bundle: Bundle, tiles: Path, out: Path, on: Callable[..., Machine]
) -> None:
    on((L4, replace(A10, ordinal=1)))
    sealed, _ = certified(bundle, ON_GPU["tensorrt"])
    arguments = [str(tiles), "-o", str(out), "--model", str(sealed.root), "--require-parity", "--device"]
    assert_refused(CliRunner().invoke(main, [*arguments, "cuda"]), 4, "no certificate", out=out)
    assert CliRunner().invoke(main, [*arguments, "cuda:1"]).exit_code == 0


def test_the_report_says_what_was_asked(
    invoke: Invoke, on: Callable[..., Machine], report: Callable[[], RunRecord]
) -> None:
    on(a10s(2))
    for text in ("auto", "cpu", "cuda", "cuda:1", "cuda:1,0"):
        assert invoke("--device", text, "--overwrite").exit_code == 0
        assert report().provenance.arguments["device"] == text


# ---- the other commands


def test_a_dry_run_on_two_gpus(invoke: Invoke, out: Path, on: Callable[..., Machine]) -> None:
    machine = on(a10s(2))
    done = invoke("--dry-run", "--device", "cuda:0,1", "-b", "4", "--json")
    assert done.exit_code == 0, done.output
    forecast = json.loads(done.stdout.splitlines()[-1])["forecast"]
    assert (forecast["found"], forecast["failed"]) == (50, 0)
    assert "onnxruntime-cuda" in forecast["runs"]
    assert {gpu for gpu, _ in machine.computed} == {0, 1}
    assert not out.exists()


@pytest.mark.parametrize(("device", "gpus"), [("cuda", {0}), ("cuda:1", {1}), ("cuda:0,1", {0, 1}), ("cpu", set())])
@pytest.mark.parametrize("provider", [True, False])
def test_a_benchmark_on_gpus(
    bundle: Bundle,
    tmp_path: Path,
    on: Callable[..., Machine],
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    gpus: set[int],
    provider: bool,
) -> None:
    monkeypatch.setattr("cervix_engine.bench.measure.LATENCY_CALLS", 5)
    machine = on(a10s(2), provider=provider)
    out = tmp_path / "bench.json"
    arguments = ["--model", str(bundle.root), *QUICK, "--scratch", str(tmp_path), "--out", str(out), "--device", device]
    done = CliRunner().invoke(bench, arguments)
    assert done.exit_code == 0, done.output
    backend = json.loads(out.read_text(encoding="utf-8"))["backend"]["backend"]
    assert backend == ("onnxruntime-cpu" if device == "cpu" else "onnxruntime-cuda" if provider else "tensorrt")
    assert {gpu for gpu, _ in machine.computed} == gpus


def test_a_benchmark_without_the_gpu_is_refused(bundle: Bundle, on: Callable[..., Machine]) -> None:
    on(())
    assert_refused(CliRunner().invoke(bench, ["--model", str(bundle.root), "--device", "cuda"]), 1, "no NVIDIA GPU")


def test_a_row_is_the_same_on_any_gpu(invoke: Invoke, out: Path, on: Callable[..., Machine]) -> None:
    on(a10s(2))
    assert invoke("--device", "cuda:0", "-b", "8").exit_code == 0
    first = out.read_bytes()
    assert invoke("--device", "cuda:1", "-b", "8", "--overwrite").exit_code == 0
    assert out.read_bytes() == first
    assert len(read_table(out)) == 50
