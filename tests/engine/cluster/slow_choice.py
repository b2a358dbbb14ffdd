"""A backend that takes its time, chosen by a function that actors can import."""

from __future__ import annotations

from cervix_engine.backends.fake import FakeBackend
from cervix_engine.run.session import Chosen, SessionRequest

BATCH_S = 0.04
CHUNK_ROWS = 16  # of each file of a folder


def choose_slow(_: SessionRequest) -> Chosen:
    return Chosen(FakeBackend(seconds_per_batch=BATCH_S))


# The source of `cervix-batch --ray ADDRESS` with that backend and small blocks; the address is its first argument.
PROGRAM = """
import sys
from functools import partial
from cervix_engine.cli.batch import main
from cervix_engine.cluster.driver import predict_on
from cervix_engine.cluster.ray_pool import RayOptions, on_ray
from cervix_engine.run.batch import RunSetup
from cervix_engine.run.transaction import TableTransaction
from engine.cluster.slow_choice import CHUNK_ROWS, choose_slow
address = sys.argv.pop(1)
open_table = partial(TableTransaction, chunk_rows=CHUNK_ROWS)
main(obj=RunSetup(choose_slow, open_table, predict=predict_on(on_ray(RayOptions(address, smallest_block=8)))))
"""
