"""The table of certificates that `cervix-export` and `cervix-parity --certify` print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from cervix_engine.cli.shared.tables import new_table

if TYPE_CHECKING:
    from rich.table import Table

    from cervix_engine.bundle.certificate import Certificate


def certificate_table(certificates: Sequence[Certificate]) -> Table:
    """One line a certificate: how far its answers are from Keras's, how fast they came, and the verdict."""
    table = new_table("file", "backend", "precision", "tiles", "max |Δp|", "p99 |Δp|", "top-1", "tiles/s", "certified")
    for item in certificates:
        parity = item.parity
        differences = (f"{parity.max_absdiff:.1e}", f"{parity.p99_absdiff:.1e}", f"{parity.top1_agreement:.2%}")
        rate, verdict = f"{item.tiles_per_sec:.1f}", "yes" if item.passed else "NO"
        table.add_row(
            PurePosixPath(item.file).name, item.backend, item.precision, str(parity.tiles), *differences, rate, verdict
        )
    return table
