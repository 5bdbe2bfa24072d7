"""Headless Chromium, to look at pages with."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_BAD = ("error", "warning")
NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """Chromium as the system has it, or as `playwright install chromium` does. GitHub's machines have one."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        found = next(filter(None, map(shutil.which, NAMES)), started.chromium.executable_path)
        if not Path(found).exists():
            (pytest.fail if os.environ.get("GITHUB_ACTIONS") else pytest.skip)("needs Chromium: apt install chromium")
        launched = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield launched
        launched.close()


class Opened:
    """A page in the browser, with all that it asked for and complained of."""

    def __init__(self, browser, address: str, width: int, own_clock: bool):
        """own_clock: whether `tab.clock` moves the page's time."""
        self.tab = browser.new_page(viewport={"width": width, "height": 844})
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("console", lambda said: self.complaints.append(said.text) if said.type in _BAD else None)
        self.tab.on("dialog", lambda dialog: self.complaints.append(dialog.message) or dialog.dismiss())
        if own_clock:
            self.tab.clock.install()
        self.tab.goto(address)
        self.wait_for("!!window.Bokeh && Bokeh.documents.length > 0 && Bokeh.documents.every(each => each.is_idle)")

    def wait_for(self, condition: str) -> None:
        """Waits until a JavaScript expression is true; the page's own policy forbids Playwright's wait, which evaluates."""
        for _ in range(300):
            if self.tab.evaluate(condition):
                return
            self.tab.wait_for_timeout(50)
        raise AssertionError(condition)

    @property
    def addresses(self) -> set[str]:
        """What was asked for, pictures in the page itself aside."""
        return {each for each in self.requests if not each.startswith("data:")}

    def drawn(self) -> list[int]:
        """Widths of the figures that are to be seen now."""
        elements = self.tab.locator("[data-root-id]").all()
        boxes = [element.locator("xpath=./*").first.bounding_box() for element in elements]
        return [box["width"] for box in boxes if box is not None and box["height"] > 50]

    def is_as_wide_as_the_window(self) -> bool:
        """Whether nothing sticks out to the side."""
        return self.tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.fixture
def open_page(browser) -> Iterator[Callable[..., Opened]]:
    """`open_page(address, width)` opens a page, which is closed after the test."""
    opened: list[Opened] = []

    def open_(address: str | Path, width: int = 1280, own_clock: bool = False) -> Opened:
        address = address.as_uri() if isinstance(address, Path) else address
        opened.append(Opened(browser, address, width, own_clock))
        return opened[-1]

    yield open_
    for each in opened:
        each.tab.close()
