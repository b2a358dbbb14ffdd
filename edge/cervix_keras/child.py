"""Runs one job in a process of its own, and believes nothing that it says.

Keras files are opened there: they are the one input that can carry code, so what it does, crashes or exhausts stays
out of the process that certifies and publishes. A job is a module that takes JSON as its argument and prints JSON on
its last line: its outcome, or `{"error": …}`.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from cervix_engine.errors import CervixError, ConversionError
from cervix_engine.privacy import keep_out_of_home

logger = logging.getLogger(__name__)

_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "-1",  # none of the jobs needs a GPU, and TensorFlow would take all of its memory
    "KERAS_BACKEND": "tensorflow",
    "PYTHONSAFEPATH": "1",  # never import from the folder that the command happens to run in
    "TF_CPP_MIN_LOG_LEVEL": "2",
}


def run_job(module: str, job: Mapping[str, Any], *, what: str, timeout_s: float) -> dict[str, str]:
    """Run `python -m module JOB` and return its outcome.

    Args:
        module: what to run.
        job: its JSON.
        what: what it does, for messages, such as `the conversion`.
        timeout_s: how long it may take.

    Raises:
        ConversionError: it failed, in its own words where it has any.
    """
    command = [sys.executable, "-m", module, json.dumps(job)]
    keep_out_of_home()
    environment = os.environ | _ENVIRONMENT
    try:
        done = subprocess.run(  # the child's exit code is part of its answer
            command, capture_output=True, text=True, errors="replace", timeout=timeout_s, env=environment, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ConversionError(f"{what} did not end within {timeout_s:g} s and was stopped") from error
    logger.debug("%s", done.stderr)
    if done.returncode < 0:
        raise ConversionError(f"{what} was ended by signal {-done.returncode}{_hint(-done.returncode)}")
    outcome = _last_json(done.stdout)
    if done.returncode or outcome is None:
        raise ConversionError((outcome or {}).get("error") or f"{what} failed: {last_line(done.stderr)}")
    return outcome


def serve(work: Callable[[], dict[str, str]]) -> int:
    """The job's own side: do the work, print its outcome as one line of JSON, and return the exit code."""
    try:
        outcome = work()
    except CervixError as error:
        outcome = {"error": str(error)}
    print(json.dumps(outcome), flush=True)  # noqa: T201 - the protocol with the parent process
    return int("error" in outcome)


def last_line(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _hint(number: int) -> str:
    return ", as a machine out of memory does" if number == signal.SIGKILL else ""


def _last_json(text: str) -> dict[str, str] | None:
    try:
        outcome = json.loads(last_line(text))
    except ValueError:
        return None
    return outcome if isinstance(outcome, dict) else None
