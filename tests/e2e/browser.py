"""A headless Chromium, for tests of the page. Nothing is downloaded: without an installed one, tests are skipped."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--window-size=1400,900",
)  # fmt: skip
WAIT_S = 20.0


def installed() -> tuple[str, str]:
    """Paths of Chromium and of its driver; skips the test where there is none."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium with chromedriver is installed (apt-get install chromium chromium-driver)")
    return chromium, driver


@contextmanager
def open_browser(profile: Path) -> Iterator[Any]:
    """A selenium WebDriver with a new, empty profile."""
    chromium, driver = installed()
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield browser
    finally:
        browser.quit()


class Page:
    """What a test sees of the page and does with it."""

    def __init__(self, browser: Any, url: str) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        self.browser = browser
        self._wait = WebDriverWait(browser, WAIT_S, poll_frequency=0.05)
        browser.get(url)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        return self.browser.execute_script(f"return {script}")

    def wait(self, script: str) -> None:
        """Until a JavaScript expression is true."""
        self._wait.until(lambda _: self.run(script), f"never true: {script}")

    def press(self, *keys: str) -> None:
        """Keys, to what has the focus."""
        self.browser.switch_to.active_element.send_keys(*keys)

    def keep_pressing(self, keys: tuple[str, ...], script: str) -> None:
        """Keys, again and again until a JavaScript expression is true."""

        def attempt(_: Any) -> Any:
            self.press(*keys)
            return self.run(script)

        self._wait.until(attempt, f"never true after {keys!r}: {script}")

    @property
    def focus(self) -> str:
        """Id of what has the focus."""
        return str(self.run("document.activeElement.id"))

    def errors(self) -> list[str]:
        """Of the console, since the last call."""
        return [entry["message"] for entry in self.browser.get_log("browser")]
