"""What the tests of HTML pages share: reading a page, its policy, a real browser."""

import base64
import hashlib
import html
import html.parser
import json
import re
import shutil
import subprocess

VOID = {"meta", "link", "img", "br", "path", "circle"}


class Page(html.parser.HTMLParser):
    """Reads a page: tags balanced, attributes, text, the numbers shown."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.attributes, self.words, self.numbers = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag == "data":
            self.numbers.append(json.loads(dict(attrs)["value"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def hash_of(script):
    """The source of an inline script in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def policy_of(page):
    """The directives of a page's content security policy."""
    [value] = [v for tag, name, v in page.attributes if tag == "meta" and "default-src" in v]
    return {name: set(sources) for name, *sources in map(str.split, value.split(";"))}


def check_policy(text):
    """The policy names the page's only script and style by their hashes, and nothing else."""
    page = Page(text)
    policy = policy_of(page)
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        [content] = re.findall(rf"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL)
        assert policy[directive] == {hash_of(content)}
    assert policy["default-src"] == {"'none'"}
    assert policy["img-src"] == {"data:"}
    names = {name for _, name, _ in page.attributes}
    assert not {name for name in names if name == "style" or name.startswith("on")}


# Clicks every column of every table twice, and every picture.
CLICK_ALL = """
  for (const button of document.querySelectorAll("th button")) {
    button.click();
    button.click();
  }
  for (const button of document.querySelectorAll("button.zoom")) {
    button.click();
    document.querySelector("dialog.viewer").close();
  }
  document.title = "probe " + document.querySelectorAll("[aria-sort=descending]").length;
"""


def open_in_browser(text, folder, probe=CLICK_ALL):
    """Open a page, run a script in it, and read it back."""
    assert "script-src 'sha256-" in html.unescape(text)
    allowed = f"script-src {hash_of(probe)} "  # in addition to the page's own, allowed by its hash
    text = text.replace("script-src ", allowed)
    probed = folder / "probed.html"
    probed.write_text(text.replace("</body>", f"<script>{probe}</script></body>"), encoding="utf-8")
    return subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            f"--user-data-dir={folder / 'profile'}",
            "--enable-logging=stderr",
            "--dump-dom",
            probed.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
