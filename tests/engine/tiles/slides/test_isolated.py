"""Calls in another process: answers and errors come back, and a crash ends that process alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cervix_engine.errors import ListingError
from cervix_engine.tiles.preprocess import open_listed
from cervix_engine.tiles.slides.grid import GridRules
from cervix_engine.tiles.slides.isolated import Isolated, ProcessDied
from cervix_engine.tiles.sources.slides import Cutting, WholeSlides
from engine.tiles.slides.crashing import crashed_by_generic


@pytest.fixture
def isolated() -> Iterator[Isolated]:
    process = Isolated()
    yield process
    process.close()


@pytest.mark.timeout(60)
def test_answers_errors_and_a_crash(isolated: Isolated) -> None:
    first = isolated.call(os.getpid)
    assert first != os.getpid()
    assert isolated.call(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        isolated.call(divmod, 7, 0)
    assert isolated.call(os.getpid) == first
    with pytest.raises(ProcessDied):
        isolated.call(signal.raise_signal, signal.SIGSEGV)
    assert isolated.call(os.getpid) not in (first, os.getpid())


@pytest.mark.timeout(60)
def test_errors_of_the_project_come_as_they_are(isolated: Isolated) -> None:
    assert isolated.call(str, ListingError("no descriptors left")) == "no descriptors left"
    with pytest.raises(TypeError):
        isolated.call(open_listed)


@pytest.mark.timeout(60)
def test_a_call_that_waits_ends_when_the_process_is_killed(isolated: Isolated) -> None:
    isolated.call(os.getpid)
    killer = threading.Timer(0.2, isolated.kill)
    killer.start()
    began = time.monotonic()
    with pytest.raises(ProcessDied):
        isolated.call(time.sleep, 50)
    assert time.monotonic() - began < 40
    with pytest.raises(ProcessDied):
        isolated.call(os.getpid)
    killer.join()


@pytest.mark.timeout(60)
def test_a_process_ends_without_a_word_when_the_run_has_ended() -> None:
    program = (
        "import os, threading, time\n"
        "from cervix_engine.tiles.slides.isolated import Isolated\n"
        "process = Isolated()\n"
        "print(process.call(os.getpid), flush=True)\n"
        "threading.Timer(0.2, os._exit, [0]).start()\n"
        "process.call(time.sleep, 1)\n"
    )
    # Its standard error is the process's own too: it is at its end when both have ended.
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip().isdecimal()
    assert done.stderr == ""


@pytest.mark.timeout(60)
def test_a_slide_that_crashes_its_decoder_is_one_tile_and_the_others_are_cut(slides: Path) -> None:
    source = WholeSlides(slides, GridRules())
    names = [name for name, *_ in source.walk()]
    records = list(Cutting(source, cut_file=crashed_by_generic))
    of_aperio = [name for name in names if name.startswith(b"aperio")]
    assert [name for name, *_ in records] == [*of_aperio, b"generic.tiff/slide"]
    status = (slides / "generic.tiff").stat()
    assert records[-1][1:] == (status.st_size, status.st_mtime_ns, b"")
