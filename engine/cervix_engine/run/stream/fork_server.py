"""A run's end of the processes in `worker.py`: the fork server, of which there is one a process, and its workers."""

from __future__ import annotations

import atexit
import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
from io import FileIO
from typing import Any

from cervix_engine.errors import DecodeWorkerError
from cervix_engine.run.stream.decode import MESSAGE_BYTES

log = logging.getLogger(__name__)

# One may be killed, like any process; those that end again and again cannot start.
FORK_SERVERS = 3

# With the very modules that this process would import.
_PROGRAM = "import sys; descriptor, *sys.path = sys.argv[1:]; from {module} import serve; serve(int(descriptor))"
_MODULE = "cervix_engine.run.stream.worker"

# NumPy's threads would make it unsafe to fork, and are of no use to decoding.
_ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class ForkServerGone(Exception):  # noqa: N818 - it may have been killed as any process, and another one takes over
    """Raised where a fork server has ended."""


class ForkServer:
    """A process that forks decode workers. It starts while this one goes on; what is asked meanwhile waits.

    What workers print, as some decoders do, waits in a pipe that never makes them wait: see `log_messages`.

    Args:
        inherited: that of the process which this one was forked from, if it has one; a copy of it starts at once.
    """

    def __init__(self, inherited: ForkServer | None = None) -> None:
        self._owner = os.getpid()
        self._gone = False
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        with ExitStack() as unless_started:
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            unless_started.callback(self._control.close)
            messages, printed = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self._messages = FileIO(messages)
            unless_started.callback(self._messages.close)
            try:
                if inherited is None or not inherited.copy_for(theirs, printed):
                    self._process = self._start(theirs, printed)
            finally:
                theirs.close()
                os.close(printed)
            unless_started.pop_all()

    @staticmethod
    def _start(control: socket.socket, printed: int) -> subprocess.Popen[bytes]:
        # Names of files are text in the same encoding on both sides.
        options = ["-P", "-X", f"utf8={sys.flags.utf8_mode}"]
        paths = [os.path.abspath(path) for path in sys.path]  # noqa: PTH100 - "" is the working directory
        return subprocess.Popen(
            [sys.executable, *options, "-c", _PROGRAM.format(module=_MODULE), str(control.fileno()), *paths],
            pass_fds=[control.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=printed,
            cwd="/",
            env={**os.environ, **_ONE_THREAD},
        )

    def copy_for(self, control: socket.socket, printed: int) -> bool:
        """Start a copy that serves another process, behind this socket; whether there is somebody to ask.

        Nothing is answered, so that a process which is killed meanwhile leaves no answer for the next one.
        """
        try:
            socket.send_fds(self._control, [b"copy"], [control.fileno(), printed])
        except OSError:
            return False
        return True

    def fork(self, chunks: socket.socket, slots: int) -> int:
        """Start a worker that reads chunks from this socket and fills the slots behind this descriptor.

        Returns:
            Its process id.

        Raises:
            ForkServerGone: it has ended.
            OSError: there cannot be another process.
        """
        process = self._ask(b"fork", chunks.fileno(), slots)
        if process < 0:
            raise OSError(-process, os.strerror(-process))
        return process

    def end(self, process: int) -> int | None:
        """End a worker, unless it has ended already; how it did, as `os.waitpid` says, or None where nobody knows."""
        try:
            return self._ask(b"end %d" % process)
        except ForkServerGone:  # and all of its workers with it
            return None

    def _ask(self, request: bytes, *descriptors: int) -> int:
        with self._lock:
            try:
                socket.send_fds(self._control, [request], descriptors)
                answer = self._control.recv(64)
            except OSError as error:
                self._gone = True
                raise ForkServerGone from error
        if not answer:
            self._gone = True
            raise ForkServerGone
        return int(answer)

    @property
    def is_usable(self) -> bool:
        """Whether it runs, and for this process."""
        return self.is_own and not self._gone and (self._process is None or self._process.poll() is None)

    @property
    def is_own(self) -> bool:
        """Whether it serves this process, and not the one that this was forked from."""
        return self._owner == os.getpid()

    def log_messages(self) -> str:
        """Put what the processes printed into the log, and return it."""
        text = ""
        with suppress(ValueError):  # it was closed meanwhile
            while data := self._messages.read(1 << 16):
                text += data.decode(errors="backslashreplace")
        for line in text.splitlines():
            log.debug("decode worker: %s", line)
        return text

    def close(self) -> None:
        """End it, and all of its workers."""
        self._control.close()
        self._messages.close()
        if self.is_own and self._process is not None:
            self._process.kill()  # it may still be starting, in vain
            self._process.wait()


_starting = threading.Lock()
_current: ForkServer | None = None


def fork_server() -> ForkServer:
    """This process's fork server, started where there is none that can be used.

    Call it as early as decoding is certain: what the run itself loads meanwhile hides how long it takes to start.

    Raises:
        DecodeWorkerError: it cannot be started.
    """
    global _current
    with _starting:
        if _current is None or not _current.is_usable:
            inherited = None if _current is None or _current.is_own else _current
            try:
                started = ForkServer(inherited)
            except OSError as error:
                raise DecodeWorkerError(f"no process can be started to decode tiles: {error.strerror}") from error
            close_fork_server()
            _current = started
            atexit.register(close_fork_server)
        return _current


def close_fork_server() -> None:
    """End this process's fork server; the next call of `fork_server` starts another one."""
    global _current
    if _current is not None:
        _current.close()
        _current = None


class WorkerProcess:
    """A worker, and the socket by which it is told what to decode.

    Args:
        slots: the descriptor of the memory that it fills.
        job: the pickled `DecodeJob`.

    Raises:
        DecodeWorkerError: it cannot be started.
    """

    def __init__(self, slots: int, job: bytes) -> None:
        with ExitStack() as unless_started:
            try:
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                unless_started.callback(ours.close)
                with theirs:
                    self._server, self._process = _fork(theirs, slots)
            except OSError as error:
                raise DecodeWorkerError(f"a decode worker cannot be started: {error.strerror}") from error
            unless_started.pop_all()
        self._socket = ours
        self._send(job)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: object) -> None:
        """Tell it something; where it has ended, that is what `receive` says next."""
        self._send(pickle.dumps(message))

    def _send(self, message: bytes) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            self._socket.send(message)

    def receive(self) -> Any:
        """What it answered.

        Raises:
            EOFError: it has ended, and there are no more answers.
        """
        with suppress(ConnectionResetError):  # it ended with messages unread; what it answered before comes next
            return self._received()
        return self._received()

    def _received(self) -> Any:
        message = self._socket.recv(MESSAGE_BYTES)
        if not message:
            raise EOFError
        return pickle.loads(message)  # noqa: S301 - from a process that was forked for this

    def end(self) -> int | None:
        """End it, unless it has ended by itself; how it did, see `ForkServer.end`."""
        self._socket.close()
        status = self._server.end(self._process)
        self._server.log_messages()
        return status


def _fork(chunks: socket.socket, slots: int) -> tuple[ForkServer, int]:
    for _ in range(FORK_SERVERS):
        server = fork_server()
        try:
            return server, server.fork(chunks, slots)
        except ForkServerGone:
            printed = server.log_messages().splitlines()
    raise DecodeWorkerError(f"the process that decodes tiles ends as it starts: {printed[-1] if printed else 'killed'}")
