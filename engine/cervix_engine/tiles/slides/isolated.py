"""Calls in a process of their own: a file that crashes its decoder there ends that process, and not the run."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, NoReturn, TypeVar

Answer = TypeVar("Answer")

# With the very modules that this process would import.
_PROGRAM = "import sys; answers, *sys.path = sys.argv[1:]; from {module} import serve; serve(int(answers))"


class ProcessDied(Exception):  # noqa: N818 - it happens to whoever opens a hostile file
    """Raised where the process has ended in a call; the next call starts another one."""


class Isolated:
    """A process that calls functions one by one. It starts with the first call; one thread at a time uses it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: IO[bytes] | None = None
        self._closed = False

    def call(self, function: Callable[..., Answer], *arguments: object) -> Answer:
        """What the function of a module returns there; its arguments, answer and errors are pickled.

        Raises:
            ProcessDied: it has ended, or was closed, before there was an answer.
            Exception: what the function raised.
        """
        try:
            told, answers = self._started()
            pickle.dump((function, arguments), told)
            told.flush()
            succeeded, answer = pickle.load(answers)  # noqa: S301 - from a process that was started for this
        except (EOFError, BrokenPipeError, ValueError, pickle.UnpicklingError) as error:
            self._end()
            raise ProcessDied from error
        if not succeeded:
            raise answer
        result: Answer = answer
        return result

    def _started(self) -> tuple[IO[bytes], IO[bytes]]:
        if self._closed:
            raise EOFError
        if self._process is None:
            ours, theirs = os.pipe2(os.O_CLOEXEC)
            paths = [os.path.abspath(path) for path in sys.path]  # noqa: PTH100 - "" is the working directory
            options = ["-P", "-X", f"utf8={sys.flags.utf8_mode}", "-c", _PROGRAM.format(module=__name__)]
            self._answers = os.fdopen(ours, "rb")
            try:
                command = [sys.executable, *options, str(theirs), *paths]
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[theirs])
            finally:
                os.close(theirs)
        assert self._process.stdin is not None
        assert self._answers is not None
        return self._process.stdin, self._answers

    def _end(self) -> None:
        process, answers, self._process, self._answers = self._process, self._answers, None, None
        if answers is not None:
            answers.close()
        if process is not None:
            process.kill()
            with suppress(BrokenPipeError):
                process.communicate()

    def kill(self) -> None:
        """End the process, from any thread: a call that waits raises `ProcessDied`, and so does every later one."""
        self._closed = True
        if process := self._process:
            process.kill()

    def close(self) -> None:
        """End it, when no call waits any more."""
        self._closed = True
        self._end()


def serve(descriptor: int) -> NoReturn:
    """Be the process: call what is told on standard input until that closes, and answer to this descriptor."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the run's affair
    cv2.setNumThreads(1)  # several of these work beside each other
    with open(descriptor, "wb") as answers:
        while True:
            try:
                function, arguments = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the run
            except EOFError:
                os._exit(0)
            try:
                answer: tuple[bool, Any] = (True, function(*arguments))
            except Exception as error:  # noqa: BLE001 - handed to the run
                answer = (False, error)
            try:
                pickle.dump(answer, answers)
                answers.flush()
            except BrokenPipeError:  # the run has ended meanwhile
                os._exit(0)
