"""A headless Chromium for tests: pages as a reader gets them, what they ask for, and what the browser says of them.

It is spoken to by the DevTools protocol over a pipe, so that no port is opened.
"""

import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
PATIENCE = 60.0


def program():
    """The browser on this machine, or None."""
    return shutil.which("bash") and next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One browser with one page; use it as a context."""

    def __enter__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="lipray-browser-")
        hear, say = os.pipe(), os.pipe()
        # The browser reads from 3 and writes to 4; bash, unlike sh, moves any number there.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (say[0], hear[1])]
        words = [program(), *FLAGS, f"--user-data-dir={self._folder.name}", "about:blank"]
        shell = ["bash", "-c", f'exec 3<&{ends[0]} 4>&{ends[1]} && exec "$@"', "bash", *words]
        self._process = subprocess.Popen(shell, pass_fds=ends, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for end in (say[0], hear[1], *ends):
            os.close(end)
        self._say, self._hear, self._rest, self._number, self.events = say[1], hear[0], b"", 0, []
        self._session = None
        targets = self._ask("Target.getTargets")["targetInfos"]
        target = next(item["targetId"] for item in targets if item["type"] == "page")
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for part in ("Page", "Network", "Log", "Runtime"):
            self._ask(f"{part}.enable")
        return self

    def __exit__(self, *_):
        os.close(self._say)
        os.close(self._hear)
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()

    def show(self, path, *, width=1200, dark=False, media=""):
        """Load a file, at a width in pixels."""
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", media=media, features=[feature])
        self.events.clear()
        self._ask("Page.navigate", url=Path(path).absolute().as_uri())
        self._until(lambda: any(event["method"] == "Page.loadEventFired" for event in self.events))
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def run(self, script):
        """The value of an expression in the page."""
        told = self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def requests(self):
        """URLs that the page asked for."""
        return [
            item["params"]["request"]["url"] for item in self.events if item["method"] == "Network.requestWillBeSent"
        ]

    def complaints(self):
        """What the browser wrote to its console: errors, warnings, and what scripts say."""
        spoken = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [event["params"] for event in self.events if event["method"] in spoken]

    def _ask(self, method, **params):
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._say, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda: next((item for item in self.events if item.get("id") == self._number), None))
        self.events.remove(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _until(self, found):
        """Read until something is found."""
        end = time.monotonic() + PATIENCE
        while not (answer := found()):
            ready, _, _ = select.select([self._hear], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            chunk = os.read(self._hear, 1 << 16)
            assert chunk, "the browser has ended"
            *whole, self._rest = (self._rest + chunk).split(b"\0")
            self.events.extend(json.loads(item) | {"method": json.loads(item).get("method", "")} for item in whole)
        return answer
