"""A real browser for tests: headless Chromium, driven by its DevTools protocol over two pipes."""

import base64
import json
import os
import subprocess
import tempfile
import time
from contextlib import suppress

import pytest

from tests.helpers.html_pages import CHROMIUM


class Browser:
    """One page of a headless Chromium; clicks and keys are events of the browser, not of a script.

    Parameters
    ----------
    size : (width, height), CSS px
    sharp : float
        Device pixels per CSS px.
    """

    def __init__(self, size=(1200, 800), sharp=1.0):
        if CHROMIUM is None:
            pytest.skip("no Chromium")
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_read, self._out = os.pipe()
        self._in, to_write = os.pipe()

        def place():  # the browser reads from descriptor 3 and writes to 4
            os.dup2(to_read, 63), os.dup2(to_write, 64)
            os.dup2(63, 3), os.dup2(64, 4)

        self._process = subprocess.Popen(
            [
                CHROMIUM,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
                f"--user-data-dir={self._profile.name}",
                "--remote-debugging-pipe",
                "about:blank",
            ],
            preexec_fn=place,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read), os.close(to_write)
        self._number, self._buffer, self.problems = 0, b"", []
        self._session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.resize(size, sharp)

    def resize(self, size, sharp=1.0, *, mobile=False):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=size[0],
            height=size[1],
            deviceScaleFactor=sharp,
            mobile=mobile,
        )

    def call(self, method, **params):
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def _receive(self):
        while b"\0" not in self._buffer:
            part = os.read(self._in, 1 << 16)
            assert part, "the browser has ended"
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(text)

    def _note(self, event):
        """Keep what the page complained about."""
        if event.get("method") == "Runtime.exceptionThrown":
            self.problems.append(event["params"]["exceptionDetails"])
        if event.get("method") == "Log.entryAdded":
            entry = event["params"]["entry"]
            if entry["level"] == "error":
                self.problems.append(entry["text"])

    def open(self, url):
        self.call("Page.navigate", url=url)

    def run(self, script):
        """Return the value of an expression; promises are awaited."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script, *, seconds=30):
        """Wait until an expression is true; return its value."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with suppress(AssertionError):  # the page may not be there yet
                if value := self.run(script):
                    return value
            time.sleep(0.05)
        raise AssertionError(f"not within {seconds} s: {script}; {self.problems}")

    def click(self, x, y):
        self.mouse("mouseMoved", x, y)
        self.mouse("mousePressed", x, y)
        self.mouse("mouseReleased", x, y)

    def drag(self, start, end, *, shift=False):
        self.mouse("mouseMoved", *start, shift=shift)
        self.mouse("mousePressed", *start, shift=shift)
        for step in (0.5, 1.0):
            at = [a + step * (b - a) for a, b in zip(start, end, strict=True)]
            self.mouse("mouseMoved", *at, shift=shift, held=True)
        self.mouse("mouseReleased", *end, shift=shift)

    def mouse(self, kind, x, y, *, shift=False, held=False):
        is_down = held or kind in ("mousePressed", "mouseReleased")
        self.call(
            "Input.dispatchMouseEvent",
            type=kind,
            x=x,
            y=y,
            button="left" if is_down else "none",
            buttons=1 if held or kind == "mousePressed" else 0,
            clickCount=1 if is_down else 0,
            modifiers=8 if shift else 0,
        )

    def wheel(self, x, y, delta):
        self.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=delta)

    def key(self, text):
        named = {"Escape", "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"}
        words = {} if text in named else {"text": text}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=text, **words)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=text)

    def screenshot(self):
        """Return the page as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def close(self):
        self._process.kill()
        self._process.wait()
        os.close(self._in), os.close(self._out)
        self._profile.cleanup()
