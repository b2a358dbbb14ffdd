"""The processes that decode: one that is clean and forks, and its children, which do the work.

    run ── "fork", "end" ──> fork server ── forks ──> worker, worker, …
     └─────────────────── chunks, answers ──────────────────┘

The fork server imports what decoding needs, once, and nothing else: no runtime, no GPU, no second thread, so that it
can fork at any time, within milliseconds, also in place of a worker that died. Every process here ends by itself when
the run has ended, however that was: whoever waits for a message sees the other end close, and whoever computes is
killed with the fork server.
"""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import resource
import signal
import socket
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

import cv2

import cervix_engine.tiles.preprocess
import cervix_engine.tiles.sources.open  # noqa: F401 - so are the readers of all sources
from cervix_engine.run.stream.decode import MESSAGE_BYTES, DecodeJob, SentTile, received
from cervix_engine.run.stream.memory import map_pixels
from cervix_engine.tiles.tile import NO_NOTES

FORK, END, COPY = b"fork", b"end", b"copy"

# How a worker ends for whom decoding took more memory than it may have.
OUT_OF_MEMORY = 71

_PR_SET_PDEATHSIG = 1

SentChunk = tuple[int, int, list[SentTile]]  # slot, first place, tiles


class ChunkTimes(NamedTuple):
    """Seconds that a worker took for a chunk: all of them, on a core, and waiting for anything else than a core."""

    took: float
    on_core: float
    idle: float


def serve(descriptor: int) -> NoReturn:
    """Be the fork server: answer requests until the run closes its end.

    | request | answer |
    |---|---|
    | `fork`, with a worker's socket and the descriptor of the slots | its process id, or minus an error number |
    | `end` and a process id | the worker's wait status, after it was killed unless it had ended already |
    | `copy`, with the socket of another fork server and what it prints to | none; that one serves another process |
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the run's affair
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    cv2.setNumThreads(1)  # OpenCV's own threads inside workers would oversubscribe the cores
    gc.freeze()  # so that collecting garbage does not copy the pages that workers share
    control = socket.socket(fileno=descriptor)
    while True:
        request, descriptors, _, _ = socket.recv_fds(control, 64, 2)
        if not request:
            os._exit(0)
        kind, _, process = request.partition(b" ")
        if kind == COPY:
            control = _copy(control, *descriptors)
            continue
        answer = _fork(control, *descriptors) if kind == FORK else _end(int(process))
        control.send(b"%d" % answer)


def _fork(control: socket.socket, chunks: int, slots: int) -> int:
    server = os.getpid()
    try:
        process = os.fork()
    except OSError as error:
        process = -(error.errno or 1)
    if process == 0:
        control.close()
        _be_worker(chunks, slots, server=server)
    os.close(chunks)
    os.close(slots)
    return process


def _copy(control: socket.socket, theirs: int, printed: int) -> socket.socket:
    """Fork a copy of this fork server that belongs to nobody; what each of both serves from now on."""
    try:
        child = os.fork()
    except OSError:  # there cannot be another process; whoever asked for it sees its socket close
        os.close(theirs)
        os.close(printed)
        return control
    if child == 0:
        if os.fork():
            os._exit(0)  # so that the copy is nobody's child, whose end nobody would wait for
        control.close()
        for stream in (1, 2):
            os.dup2(printed, stream)
        control = socket.socket(fileno=theirs)
    else:
        os.waitpid(child, 0)
        os.close(theirs)
    os.close(printed)
    return control


def _end(process: int) -> int:
    os.kill(process, signal.SIGKILL)
    return os.waitpid(process, 0)[1]


def _be_worker(chunks: int, slots: int, *, server: int) -> NoReturn:
    # Open until the process ends: the run takes its closing for the end, and kills what lives on.
    told, code = socket.socket(fileno=chunks), 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == server:  # else it had ended before that
            work(told, slots)
        code = 0
    except (BrokenPipeError, ConnectionResetError):
        code = 0  # the run has ended meanwhile
    except MemoryError:
        code = OUT_OF_MEMORY
    except BaseException:  # noqa: BLE001 - the last frame of this process
        traceback.print_exc()
    finally:
        os._exit(code)


def work(chunks: socket.socket, slots: int) -> None:
    """Decode chunk after chunk until the run closes its end.

    The first message is the `DecodeJob`, answered by None when the worker is ready. Then each is a `SentChunk`,
    answered by (its `ChunkTimes`, what became of its tiles, what was noted of which). An error that is no tile's fault
    is an answer too, the last one.
    """
    try:
        job: DecodeJob = pickle.loads(chunks.recv(MESSAGE_BYTES))  # noqa: S301 - from the run that forked this
        pixels = map_pixels(slots, job.shape)
        os.close(slots)
        _limit_memory(job.limits.worker_bytes)
        chunks.send(pickle.dumps(None))
        stopwatch = _Stopwatch()
        while message := chunks.recv(MESSAGE_BYTES):
            stopwatch.start()
            slot, start, sent = pickle.loads(message)  # noqa: S301
            tiles, places = list(map(received, sent)), pixels[slot, start:]
            job.reader.expect(tiles)
            outcomes = [job.decode(tile, out) for tile, out in zip(tiles, places, strict=False)]
            decoded, notes = zip(*outcomes, strict=True)
            noted = {place: note for place, note in enumerate(notes) if note is not NO_NOTES}
            chunks.send(pickle.dumps((stopwatch.times(), decoded, noted)))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - handed to the run, which stops for it
        chunks.send(_sendable(error))


class _Stopwatch:
    """Times chunks, by the kernel's own account of who waits for a core; where it keeps none, nobody does.

    Source: Linux, `Documentation/scheduler/sched-stats.rst` (`/proc/<pid>/schedstat`).
    """

    def __init__(self) -> None:
        self._account: int | None = None
        with suppress(OSError):
            self._account = os.open("/proc/self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        self.start()

    def start(self) -> None:
        self._began = self._now()

    def times(self) -> ChunkTimes:
        took, on_core, queued = (now - began for now, began in zip(self._now(), self._began, strict=True))
        return ChunkTimes(took, on_core, max(0.0, took - on_core - queued))

    def _now(self) -> tuple[float, float, float]:
        """Seconds that have passed, on a core, and waiting for one."""
        queued = int(os.pread(self._account, 128, 0).split()[1]) / 1e9 if self._account is not None else 0.0
        # Of its time on a core the account tells what the last tick knew.
        return time.perf_counter(), time.process_time(), queued


def _sendable(error: Exception) -> bytes:
    where = traceback.format_exc()
    error.add_note(where)
    try:
        message = pickle.dumps(error)
        pickle.loads(message)  # noqa: S301
    except Exception:  # noqa: BLE001 - whatever an error's own class does there
        message = pickle.dumps(RuntimeError(where))
    return message


def _limit_memory(more: int) -> None:
    """Let this process allocate so many bytes beside those that it has; shared memory does not count."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    held = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData:")), 0)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = held * 1024 + more
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
