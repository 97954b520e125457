"""A browser without a window, told what to do over WebDriver (https://www.w3.org/TR/webdriver2/)."""

import base64
import json
import re
import shutil
import subprocess
import tempfile
import time
from http.client import HTTPConnection

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"escape": "\ue00c", "enter": "\ue007", "control": "\ue009"}


def is_there():
    """Return whether there is a browser to test in."""
    return shutil.which("chromedriver") is not None


class Driver:
    """A running chromedriver, with as many browsers as are asked for."""

    def __enter__(self):
        self.process = subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        for line in self.process.stdout:
            if found := re.search(r"started successfully on port (\d+)", line):
                self.port = int(found[1])
                break
        self.browsers = []
        return self

    def __exit__(self, *_):
        for browser in self.browsers:
            browser.close()
        self.process.terminate()
        self.process.wait()

    def browser(self, *flags):
        """Return a browser of its own, with a profile of its own."""
        self.browsers.append(Browser(self.port, flags))
        return self.browsers[-1]


class Browser:
    """One window."""

    def __init__(self, port, flags):
        self.connection = HTTPConnection("127.0.0.1", port, timeout=60)
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        options = {"args": [*FLAGS, f"--user-data-dir={self.profile.name}", *flags]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self.session = ""
        self.session = self.ask("POST", "", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def ask(self, method, path, body=None):
        """Return what the driver answers."""
        path = f"/session/{self.session}{path}" if self.session else "/session"
        self.connection.request(method, path, None if body is None else json.dumps(body))
        told = json.loads(self.connection.getresponse().read())["value"]
        if isinstance(told, dict) and "error" in told:
            raise AssertionError(f"{told['error']}: {told['message']}")
        return told

    def open(self, address):
        """Go to an address."""
        self.ask("POST", "/url", {"url": address})

    def run(self, code, *arguments):
        """Return what a script in the page returns."""
        return self.ask("POST", "/execute/sync", {"script": code, "args": arguments})

    def text(self, selector):
        """Return the text of an element as it is seen; empty where it is hidden."""
        return self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector)

    def press(self, *keys):
        """Press keys, one after the other, wherever the page has its focus; `control+enter` together."""
        actions = []
        for key in keys:
            held = [KEYS.get(part, part) for part in key.split("+")]
            actions += [{"type": "keyDown", "value": part} for part in held]
            actions += [{"type": "keyUp", "value": part} for part in reversed(held)]
        self.ask("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def write(self, selector, text):
        """Type into a field, in place of what it holds."""
        element = self.ask("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT]
        self.ask("POST", f"/element/{element}/clear", {})
        self.ask("POST", f"/element/{element}/value", {"text": text})

    def wait(self, code, *arguments, seconds=20):
        """Wait until a script in the page returns something true, and return it."""
        for _ in range(seconds * 20):
            if found := self.run(code, *arguments):
                return found
            time.sleep(0.05)
        raise AssertionError(f"{code} {arguments}: never; the page says {self.text('body')!r}")

    def wait_for(self, selector, words):
        """Wait until an element's text has these words."""
        self.wait("return document.querySelector(arguments[0])?.innerText.includes(arguments[1])", selector, words)

    def errors(self):
        """Return what the browser's console complains of."""
        return [each["message"] for each in self.ask("POST", "/se/log", {"type": "browser"})]

    def picture(self):
        """Return the window as a PNG."""
        return base64.b64decode(self.ask("GET", "/screenshot"))

    def close(self):
        """End the browser."""
        self.ask("DELETE", "")
        self.connection.close()
        self.profile.cleanup()
