"""A browser for tests: Chromium without a window, and waiting for what a page does."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

webdriver: Any = None
REDRAWN: tuple[type[Exception], ...] = (ValueError, IndexError)
"""What reading a page raises while it is being redrawn."""
try:
    from selenium import webdriver
    from selenium.common import exceptions

    REDRAWN += (
        exceptions.ElementNotInteractableException,
        exceptions.StaleElementReferenceException,
    )
except ImportError:
    pass

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"),
    "--disable-component-update",
)

needs_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER and webdriver), reason="needs chromium, chromedriver and selenium"
    ),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
"""Marks of tests that need a browser."""


def open_browser(folder: Path, size: tuple[int, int], downloads: Path | None = None) -> Any:
    """Start a browser with its data in a folder; files that pages save go to another one."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--window-size={size[0]},{size[1]}", f"--user-data-dir={folder}"):
        options.add_argument(flag)
    if downloads is not None:
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    return webdriver.Chrome(options=options, service=webdriver.chrome.service.Service(DRIVER))


def until(ready: Callable[[], Any], what: str, seconds: float = 300) -> Any:
    """Wait until a function gives a true value, and give that value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := ready():
                return found
        except REDRAWN:
            pass
        time.sleep(0.3)
    raise AssertionError(f"after {seconds:.0f} s: {what}")
