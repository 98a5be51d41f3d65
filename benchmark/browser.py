"""The page in web/ with a model, served and opened in Chromium: its time, and what tests click."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

WEB = Path(__file__).resolve().parents[1] / "web"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
MODULES = "onnxruntime", "onnxscript", "selenium"
PATIENCE = 300  # seconds
REPEATS = 5


def missing() -> list[str]:
    """What this machine lacks to build the page and to open it."""
    found: dict[str, object] = {name: importlib.util.find_spec(name) for name in MODULES}
    found |= {"chromium": CHROMIUM, "chromedriver": DRIVER}
    found["npm ci in web/"] = (WEB / "node_modules" / "onnxruntime-web").is_dir()
    return [name for name, thing in found.items() if not thing]


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves the files of a folder and says nothing."""

    extensions_map = {
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
    }

    def log_message(self, *_: Any) -> None:
        pass


class Isolated(Quiet):
    """With the headers that let onnxruntime use all cores (docs/onnx.md)."""

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()


@contextmanager
def served(model: Path, site: Path, handler: type[Quiet] = Quiet) -> Iterator[str]:
    """Build the page with an exported model and serve it: its address."""
    command = ["sh", WEB / "build.sh", model, site]
    subprocess.run(command, check=True, capture_output=True)
    answer = functools.partial(handler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


@contextmanager
def chromium(width: int, height: int) -> Iterator[Any]:
    """A browser without a screen."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    size = f"window-size={width},{height}"
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", size):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def seconds_in_the_browser(address: str, pixels: np.ndarray, folder: Path) -> dict[str, float]:
    """Seconds until the model is loaded, and milliseconds for a support and a picture: medians,
    after one that does not count. pixels: uint8 [H, W, 3]; folder: takes a file of them."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    path = folder / "picture.png"
    cv2.imwrite(str(path), pixels)
    found = {}
    with chromium(width=1000, height=1200) as browser:
        by = functools.partial(browser.find_element, By.ID)
        wait = WebDriverWait(browser, PATIENCE, poll_frequency=0.02)
        start = time.perf_counter()
        browser.get(address)
        wait.until(lambda _: by("add").is_enabled() or by("message").text)
        if trouble := by("message").text:
            raise RuntimeError(trouble)
        found["load_s"] = time.perf_counter() - start
        by("support").send_keys(str(path))
        by("queries").send_keys(str(path))
        wait.until(lambda _: by("marks").is_displayed() and by("add").is_enabled())
        browser.find_element(By.CSS_SELECTOR, "[value=box]").click()
        supports, queries = [], []
        for number in range(1, REPEATS + 2):
            drag = ActionChains(browser, duration=50).move_to_element_with_offset(
                by("marks"), -100, -80
            )
            drag.click_and_hold().move_by_offset(200, 160).release().perform()
            start = time.perf_counter()
            by("add").click()
            wait.until(
                lambda _, n=number: len(browser.find_elements(By.CSS_SELECTOR, "#supports li")) == n
            )
            supports.append(1e3 * (time.perf_counter() - start))
        for left in range(REPEATS, 0, -1):
            browser.find_element(By.CSS_SELECTOR, "#supports button").click()
            wait.until(
                lambda _, n=left: len(browser.find_elements(By.CSS_SELECTOR, "#supports li")) == n
            )
        for _ in range(REPEATS + 1):
            start = time.perf_counter()
            by("segment").click()
            wait.until(
                lambda _: (
                    by("segment").is_enabled() and "1 of 1 pictures segmented" in by("status").text
                )
            )
            queries.append(1e3 * (time.perf_counter() - start))
    medians = {"support_ms": supports, "query_ms": queries}
    return found | {name: statistics.median(times[1:]) for name, times in medians.items()}
