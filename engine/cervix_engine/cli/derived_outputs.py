"""What `cervix-batch` makes from its finished table; a failure here leaves the table as it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cervix_engine.errors import CervixError, OutputError

if TYPE_CHECKING:
    from cervix_engine.report.make import ReportConfig
    from cervix_engine.run.batch import BatchConfig


@dataclass(frozen=True, slots=True)
class DerivedOutputs:
    """Where summary, GeoJSON and page go; None leaves one out."""

    summary: Path | None
    geojson: Path | None
    report: Path | None

    def check(self, config: BatchConfig) -> None:
        """Refuse before a long run what would be refused after it.

        Raises:
            CervixError: a target cannot be written, or is there already.
        """
        from cervix_engine.report.make import check_config

        if self.targets:
            check_config(self._wanted(config))

    def make(self, config: BatchConfig) -> None:
        """Make all of them from the finished table.

        Raises:
            OutputError: one could not be made.
        """
        from cervix_engine.report.make import make_report

        if not self.targets:
            return
        try:
            make_report(self._wanted(config))
        except CervixError as error:
            raise OutputError(f"{config.out} is done, but what was to be made of it is not: {error}") from error

    @property
    def targets(self) -> dict[str, Path]:
        """What is made, by its name."""
        named = {"summary": self.summary, "GeoJSON": self.geojson, "report": self.report}
        return {name: path for name, path in named.items() if path is not None}

    def _wanted(self, config: BatchConfig) -> ReportConfig:
        from cervix_engine.report.make import ReportConfig

        return ReportConfig(
            table=config.out,
            out=self.report,
            tiles=config.tiles,
            summary=self.summary,
            geojson=self.geojson,
            model=config.model,
            overwrite=config.overwrite,
        )
