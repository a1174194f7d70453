"""A browser for the tests that need one: a Chromium of the machine, else the one that Playwright installs."""

import shutil

import pytest

INSTALLED = ("chromium", "chromium-headless-shell", "google-chrome", "chromium-browser")


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, INSTALLED)), None)
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()
