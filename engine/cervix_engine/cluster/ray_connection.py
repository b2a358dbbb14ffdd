"""The connection to a Ray cluster, which the run leaves as it was."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import IO, Any, cast

from cervix_engine.errors import UsageError
from cervix_engine.extras import require_installed

log = logging.getLogger(__name__)

CONNECT_S = 10.0


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Connect to the cluster at an address, or that of this machine, `auto`, and give the module `ray`.

    Raises:
        BackendUnavailableError: Ray is not installed.
        UsageError: there is no cluster at that address.
    """
    require_installed("ray", "ray", work="--ray")
    # Before it is imported: it reports nothing, and it holds no message back to print it once all is over.
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_DEDUP_LOGS="0")
    import ray

    with redirect_stdout(cast("IO[str]", _WithoutRay(sys.stdout))):
        _connect(ray, address)
        try:
            yield ray
        finally:
            ray.shutdown()


class _WithoutRay:
    """Standard output, without what a thread of Ray's prints there of each death: that goes to the log."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if threading.current_thread().name.startswith("ray_"):
            log.debug("Ray: %s", text.rstrip())
            return len(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _connect(ray: Any, address: str) -> None:
    """Raises UsageError where no cluster answers: Ray itself would try for minutes."""
    nobody = f"--ray {address}: no cluster answers there: docs/scaling.md says how to start one"
    try:
        if address != "auto":
            host, _, port = address.removeprefix("ray://").rpartition(":")
            with socket.create_connection((host, int(port)), timeout=CONNECT_S):
                pass
        ray.init(address=address, namespace="cervix", log_to_driver=False, configure_logging=False)
    except (OSError, ValueError, RuntimeError) as error:
        log.debug("no cluster: %s", error)
        raise UsageError(nobody) from error
