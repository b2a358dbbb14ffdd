"""What a measurement leaves behind: JUnit XML for a build server, a history of nights, and a plot of its drift."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from cervix_engine.errors import UsageError
from cervix_engine.extras import require_installed
from cervix_engine.files import atomic_path
from cervix_engine.privacy import keep_out_of_home
from cervix_export.parity.measure import ParityReport

HISTORY = "cervix/parity-history/1"


def write_junit(path: Path, report: ParityReport) -> None:
    """One test case a comparison, in the XML that build servers read."""
    failed = sum(not layer.passed for layer in report.layers)
    suite = ElementTree.Element(
        "testsuite", name="cervix-parity", tests=str(len(report.layers)), failures=str(failed), timestamp=report.at
    )
    for layer in report.layers:
        case = ElementTree.SubElement(suite, "testcase", classname=f"parity.{layer.layer}", name=layer.subject)
        if layer.objections:
            kind = "skipped" if layer.passed else "failure"
            ElementTree.SubElement(case, kind, message="; ".join(layer.objections))
    with atomic_path(path) as temporary:
        ElementTree.ElementTree(suite).write(temporary, encoding="utf-8", xml_declaration=True)


def append_history(path: Path, report: ParityReport) -> None:
    """Add one line of JSON with every comparison's numbers."""
    layers = [
        {
            "layer": layer.layer,
            "subject": layer.subject,
            "passed": layer.passed,
            "max_absdiff": layer.parity.max_absdiff if layer.parity else None,
            "p99_absdiff": layer.parity.p99_absdiff if layer.parity else None,
            "agreement": layer.parity.top1_agreement if layer.parity else None,
        }
        for layer in report.layers
    ]
    head = {"schema": HISTORY, "at": report.at, "bundle": report.bundle, "tiles": report.tiles}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**head, "machine": report.machine, "layers": layers}, allow_nan=False) + "\n")


def read_history(path: Path) -> list[dict[str, Any]]:
    """All nights of a history, in order.

    Raises:
        UsageError: a line is none of its lines.
    """
    nights = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            night = json.loads(line)
            fits = night["schema"] == HISTORY
        except (ValueError, KeyError, TypeError):
            fits = False
        if not fits:
            raise UsageError(f"{path}, line {number}: not a line of a parity history")
        nights.append(night)
    return nights


def plot_drift(path: Path, nights: list[dict[str, Any]]) -> None:
    """Draw each comparison's p99 difference and agreement over the nights, as PNG.

    Raises:
        BackendUnavailableError: matplotlib is not installed.
    """
    require_installed("train", "matplotlib", work="a drift plot")
    keep_out_of_home()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    differences, agreements = figure.subplots(2, 1, sharex=True)
    for subject, points in _series(nights).items():
        times = [at for at, _, _ in points]
        differences.plot(times, [max(p99, 1e-9) for _, p99, _ in points], marker="o", label=subject)
        agreements.plot(times, [100 * agreement for _, _, agreement in points], marker="o")
    differences.set(yscale="log", ylabel="p99 difference of probabilities", title="Parity, night by night")
    differences.legend(fontsize="small")
    agreements.set(ylabel="equal classes, %")
    agreements.set_ylim(top=100.2)  # there is no more
    agreements.tick_params(axis="x", rotation=30)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _series(nights: list[dict[str, Any]]) -> dict[str, list[tuple[str, float, float]]]:
    series: dict[str, list[tuple[str, float, float]]] = defaultdict(list)
    for night in nights:
        for layer in night["layers"]:
            if layer["agreement"] is not None:
                point = (night["at"][:16].replace("T", " "), layer["p99_absdiff"], layer["agreement"])
                series[layer["subject"]].append(point)
    return dict(series)
