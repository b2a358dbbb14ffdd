"""What is shown beside the picture of a tile: where in it the network looked, and which training tiles it is like."""

from __future__ import annotations

from dataclasses import dataclass

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.report.class_maps import class_map, painted
from cervix_engine.report.feature_network import FeatureNetwork
from cervix_engine.report.similar import Neighbour, TrainingTiles
from cervix_engine.values import Pixels


@dataclass(frozen=True, slots=True)
class Reason:
    """What was asked for of one tile.

    Attributes:
        heat: the tile with its class map, `uint8 (height, width, 3)` RGB.
        similar: the nearest training tiles.
    """

    heat: Pixels | None
    similar: tuple[Neighbour, ...]


class Reasons:
    """Finds both from one pass of a tile through the network.

    Attributes:
        heatmaps: whether tiles get a heat map.
        training: the training tiles that tiles are compared with; None leaves that out.

    Raises:
        CervixError: the bundle's network or its training tiles are not fit for what is asked.
    """

    def __init__(self, bundle: Bundle, *, heatmaps: bool = False, similar: bool = False) -> None:
        self.heatmaps = heatmaps
        self._network = FeatureNetwork(bundle, with_head=heatmaps)
        self.training = TrainingTiles(bundle, self._network) if similar else None

    def of(self, pixels: Pixels) -> Reason:
        """Those of a decoded tile, `uint8 (height, width, 3)` RGB, of any size."""
        (features,) = self._network.features([pixels])
        heat = painted(pixels, class_map(features, self._network.head)) if self.heatmaps else None
        return Reason(heat, self.training.nearest(features) if self.training else ())
