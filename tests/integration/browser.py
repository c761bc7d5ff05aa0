# SPDX-License-Identifier: MPL-2.0
"""A headless Chromium on the broker's management pages, driven through tests/ui/browser.js."""

import json
import os
import subprocess
import uuid

from management import quoted
from programs import UI


class Browser:
    def __init__(self):
        self._process = subprocess.Popen(["node", os.path.join(UI, "browser.js")], cwd=UI, text=True,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def call(self, page, method, *args):
        self._process.stdin.write(json.dumps({"page": page, "method": method, "args": args}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the browser has ended: {self._process.wait(120)}"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def close(self):
        self._process.stdin.close()
        self._process.wait(120)


class Page:
    """A tab in which a user has logged in. What is not here is a method of Playwright's Page:
    click(selector), fill(selector, text), waitForSelector(selector), ..."""

    def __init__(self, browser, broker, user="guest"):
        self._browser, self._name = browser, uuid.uuid4().hex
        self.url = f"http://127.0.0.1:{broker.management_port}/"
        self.open(self.url)
        self.fill("input[name=username]", user)
        self.fill("input[name=password]", user)
        self.click("input[type=submit]")
        self.waitForSelector("#tabs a")

    def __getattr__(self, method):
        return lambda *args: self._browser.call(self._name, method, *args)

    def visit(self, fragment, selector):
        """Goes to a page, made anew also if it is the one that is shown, and waits for part of it."""
        self.load(self.url + fragment)
        self.waitForSelector(selector)

    def exchange(self, name, vhost="/"):
        """The page of a delayed exchange, with its messages and what else is asked for by itself."""
        self.visit(f"#/delayed-exchanges/{quoted(vhost)}/{quoted(name)}", LOADED)
        for part in ("members", "due-times"):
            self.waitForSelector(f"#delayed-{part}:not(:has-text('Loading'))", {"state": "attached"})

    def await_text(self, selector, text):
        self.waitForSelector(f"{selector}:has-text({json.dumps(text)})")


# The messages have come, or there are none.
LOADED = "#delayed-messages-table, #delayed-messages p:not(:has-text('Loading'))"
INFO, WARNING = ".form-popup-info", ".form-popup-warn"

# Each would leave its trace in the page if it were taken for markup or program.
HOSTILE = ["<script>window.hurt=1</script>", "<img src=x onerror='window.hurt=1'>",
           "\"><img src=x onerror=\"window.hurt=1\">", "'><svg onload=window.hurt=1>",
           "javascript:window.hurt=1", "${window.hurt=1}", "<%= window.hurt=1 %>", "&lt;b&gt;"]


def press(page, name):
    """Presses the button of this name."""
    page.click(f'#main button:text-is("{name}")')


def popup(page, kind, text):
    """Waits for a popup with that text, reads and closes it. It fades, and must not be taken for the next."""
    page.await_text(kind, text)
    read = page.texts(kind)[0]
    page.evaluate(f"document.querySelector('{kind}').dataset.read = ''")
    page.click(f"{kind} span#close" if page.count(f"{kind} span#close") else f"{kind} span")
    page.waitForSelector(f"{kind}[data-read]", {"state": "detached"})
    return read
