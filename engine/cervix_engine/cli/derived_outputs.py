"""What `cervix-batch` makes from its finished table; a failure here leaves the table as it is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cervix_engine.errors import CervixError, OutputError, UsageError

if TYPE_CHECKING:
    from cervix_engine.report.make import ReportConfig
    from cervix_engine.run.batch import BatchConfig
    from cervix_engine.run.journal import InputRules
    from cervix_engine.tiles.listing import Listing


@dataclass(frozen=True, slots=True)
class DerivedOutputs:
    """Where summary, GeoJSON and page go; None leaves one out."""

    summary: Path | None
    geojson: Path | None
    report: Path | None

    def remaining(self, config: BatchConfig) -> DerivedOutputs:
        """Those that a command which is repeated goes on with: what lies beside a finished table is made already."""
        if config.overwrite or config.retry_failures or config.update or not os.path.lexists(config.out):
            return self
        return DerivedOutputs(
            *(None if path and os.path.lexists(path) else path for path in (self.summary, self.geojson, self.report))
        )

    def check(self, config: BatchConfig) -> None:
        """Refuse before a long run what would be refused after it.

        Raises:
            CervixError: a target cannot be made or written, or is there already.
        """
        from cervix_engine.outputs.places import local_file, require_apart
        from cervix_engine.report.make import check_config

        if not self.targets:
            return
        for path in self.targets.values():
            require_apart(path, (local_file(config.coords), local_file(config.slide), config.previews))
        check_config(self._wanted(config))

    def check_listing(self, listing: Listing, rules: InputRules) -> None:
        """Refuse GeoJSON of tiles of which nothing can say where they lie, before they are predicted.

        Raises:
            UsageError: so it is.
        """
        from cervix_engine.table.locations import may_be_located

        if self.geojson and not may_be_located(listing.paths(), rules.coords):
            raise UsageError(
                "--geojson: nothing says where tiles lie on their slides: name a pattern of their names, or a CSV "
                "file, with --coords"
            )

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
