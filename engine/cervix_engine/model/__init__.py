"""The door for Python: see `model.py`."""

from cervix_engine.model.answers import Answers, TileAnswer
from cervix_engine.model.model import Model

__all__ = ["Answers", "Model", "TileAnswer"]
