"""Web servers of tiles on loopback: one that fails some of its requests, and can go away."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class FailingHandler(SimpleHTTPRequestHandler):
    """Every so many requests fail, by turns: an error of the server, a closed connection, half an answer."""

    def __init__(self, *arguments: Any, faults: Faults, **options: Any) -> None:
        self._faults = faults
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        self._faults.wait()
        how = self._faults.next()
        if how == 0:
            self.send_error(503, "Slow Down")
        elif how == 1:
            self.close_connection = True
        elif how == 2:
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"half")
            self.close_connection = True
        else:
            super().do_GET()

    def log_message(self, *arguments: Any) -> None:
        pass


class Faults:
    """Which requests fail: every `every`th; none where it is 0."""

    def __init__(self, every: int = 0, delay_s: float = 0.0) -> None:
        self.every = every
        self.requests = 0
        self._delay_s = delay_s
        self._kinds = itertools.cycle(range(3))
        self._lock = threading.Lock()

    def next(self) -> int | None:
        with self._lock:
            self.requests += 1
            return next(self._kinds) if self.every and self.requests % self.every == 0 else None

    def wait(self) -> None:
        time.sleep(self._delay_s)


@contextmanager
def web_server(folder: Path, faults: Faults, *, port: int = 0) -> Iterator[ThreadingHTTPServer]:
    """Serve a folder until the block ends, or somebody shuts the server down."""
    ThreadingHTTPServer.allow_reuse_address = True
    server = ThreadingHTTPServer(("127.0.0.1", port), partial(FailingHandler, faults=faults, directory=str(folder)))
    server.daemon_threads = True
    thread = threading.Thread(target=partial(server.serve_forever, 0.01), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def address_of(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"
