"""Draws Pap-smear-like cells of five visibly different kinds, so that tutorial, demo and tests need no data of others.

They are drawings: nothing that is learnt from them says anything about real cells.
"""

from cervix_train.synthetic.cells import KINDS, draw_tile
from cervix_train.synthetic.datasets import write_drawn, write_slides

__all__ = ["KINDS", "draw_tile", "write_drawn", "write_slides"]
