"""A headless Chromium, driven over a pipe in its DevTools protocol: no driver and no library needed."""

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 60.0  # seconds


class Chromium:
    """One tab. `evaluate` runs JavaScript in it; `drag` and `click` are real mouse events."""

    def __init__(self, requests: int, answers: int) -> None:
        """File descriptors: to write requests to, and to read answers from."""
        self._requests, self._answers = requests, answers
        self._buffer, self._number, self._session = b"", 0, ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of one command; RuntimeError if the browser refuses it."""
        self._number += 1
        request = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            request["sessionId"] = self._session
        os.write(self._requests, json.dumps(request).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            more = os.read(self._answers, 1 << 16)
            if not more:
                raise RuntimeError("the browser has ended")
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait_for(self, script: str, patience: float = PATIENCE) -> Any:
        """The first true value of the expression."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            if value := self.evaluate(script):
                return value
            time.sleep(0.1)
        said = self.evaluate("document.body.innerText")
        raise AssertionError(f"waited {patience:.0f} s for {script}; the page says {said!r}")

    def mouse(self, kind: str, x: float, y: float, button: str = "left") -> None:
        """kind: mousePressed, mouseMoved or mouseReleased, at a point of the window."""
        held = {"left": 1, "right": 2}[button] if kind != "mouseReleased" else 0
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=held, clickCount=1)

    def click(self, x: float, y: float, button: str = "left") -> None:
        self.mouse("mousePressed", x, y, button)
        self.mouse("mouseReleased", x, y, button)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.mouse("mousePressed", *start)
        for part in (0.5, 1.0):
            self.mouse("mouseMoved", *(a + part * (b - a) for a, b in zip(start, end, strict=True)))
        self.mouse("mouseReleased", *end)

    def centre(self, script: str) -> tuple[float, float]:
        """Where the element that the expression yields is in the window."""
        x, y, width, height = self.evaluate(f"(r => [r.x, r.y, r.width, r.height])(({script}).getBoundingClientRect())")
        return x + width / 2, y + height / 2

    def press(self, script: str, until: str = "") -> None:
        """Clicks on the element that the expression yields.

        until: what the click leads to, for an element that the page replaces now and then: the click is lost where
        that happens between press and release, and is then repeated.
        """
        self.click(*self.centre(script))
        for _ in range(2 if until else 0):
            with suppress(AssertionError):
                self.wait_for(until, PATIENCE / 3)
                return
            self.click(*self.centre(script))
        if until:
            self.wait_for(until)


@contextmanager
def chromium() -> Iterator[Chromium]:
    """A browser with a profile of its own, gone afterwards."""
    assert PROGRAM is not None
    read_requests, requests = os.pipe()
    answers, write_answers = os.pipe()

    def to_3_and_4() -> None:  # where --remote-debugging-pipe wants them
        first, second = os.dup(read_requests), os.dup(write_answers)
        os.dup2(first, 3)
        os.dup2(second, 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        options += ["--disable-background-networking", f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        options.append("--window-size=1000,900")
        process = subprocess.Popen(
            [PROGRAM, *options], preexec_fn=to_3_and_4, close_fds=False,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(read_requests)
        os.close(write_answers)
        try:
            yield Chromium(requests, answers)
        finally:
            os.close(requests)
            process.terminate()
            process.wait(30)
            os.close(answers)
