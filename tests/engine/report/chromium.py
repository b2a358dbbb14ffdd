"""Headless Chromium over its own debugging pipe: nothing to install but the browser."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """One open page; what its console said and what it asked the network for is kept."""

    def __init__(self, commands: int, answers: IO[bytes]) -> None:
        self._commands, self._answers = commands, answers
        self._last, self._session, self._loaded = 0, "", False
        self.complaints: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Network", "Page"):
            self.call(f"{domain}.enable")

    def open(self, path: Path, *, width: int, height: int = 900, dark: bool = False) -> None:
        """Show a file at a window's size, in light or dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[feature])
        # The page may be there before the answer to `navigate` is.
        self._loaded = False
        self.call("Page.navigate", url=path.as_uri())
        while not self._loaded:
            self._read()

    def require_sound(self, path: Path, *, width: int, dark: bool) -> None:
        """Show a file, and fail where it complains, asks a network for anything, scrolls sideways or is not as dark."""
        self.complaints.clear()
        self.requests.clear()
        self.open(path, width=width, dark=dark)
        time.sleep(0.2)  # for what a hostile name would start
        assert self.complaints == []
        assert {request.partition(":")[0] for request in self.requests} <= {"file", "data"}
        assert self.value("document.documentElement.scrollWidth") <= width, "nothing makes the page scroll sideways"
        ground = self.value("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground))) < 200) == dark

    def fits_paper(self) -> bool:
        """Whether the open page, as it prints, is no wider than A4."""
        width = 794
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=1123, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", media="print")
        fits = self.value(f"document.documentElement.scrollWidth <= {width}")
        self.call("Emulation.setEmulatedMedia", media="")
        return bool(fits)

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._last:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _read(self) -> dict[str, Any]:
        data = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("the browser went away")
            data += byte
        message: dict[str, Any] = json.loads(data)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method: str | None, parameters: dict[str, Any]) -> None:
        if method in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
            self.complaints.append(json.dumps(parameters))
        elif method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Page.javascriptDialogOpening":
            self.complaints.append("a dialog opened")


@contextmanager
def open_browser(profile: Path) -> Iterator[Page]:
    """A browser with a fresh profile; it ends with the block."""
    assert PROGRAM is not None
    commands_in, commands_out = os.pipe()
    answers_in, answers_out = os.pipe()
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
    # The browser reads commands from descriptor 3 and answers on 4, so a shell puts the pipes there.
    shell = f'exec "$0" "$@" 3<&{commands_in} 4>&{answers_out}'
    process = subprocess.Popen(
        ["/bin/bash", "-c", shell, PROGRAM, *options, "--disable-dev-shm-usage", f"--user-data-dir={profile}"],
        pass_fds=(commands_in, answers_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(commands_in)
    os.close(answers_out)
    try:
        with os.fdopen(answers_in, "rb") as answers:
            yield Page(commands_out, answers)
    finally:
        process.terminate()
        process.wait(timeout=60)
        os.close(commands_out)
