"""The page in web/, in a real browser: its masks are the Python predictor's."""

from __future__ import annotations

import base64
import functools
import io
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from benchmark.browser import WEB, chromium, missing, served
from tests.own_pictures import disc, small_config, untrained, write
from util.draw.overlays import class_colour
from util.predict import OnnxPredictor

PATIENCE = 60  # seconds for one step of the page, on a busy machine
LACKING = missing()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The page with an untrained model, served; its address and the folder of the export."""
    from util.weights.onnx import export_onnx

    folder = tmp_path_factory.mktemp("web")
    cfg = small_config(resized_val=False, stages=1)
    weight = folder / "best.pth"
    torch.save({"model": untrained(cfg).state_dict(), "config": cfg.to_dict()}, weight)
    export_onnx(cfg, weight, folder / "model")
    with served(folder / "model", folder / "site") as address:
        yield address, folder / "model"


@pytest.fixture
def browser():
    with chromium(width=400, height=900) as driver:
        yield driver


MARKED = """
const {width, height} = marks;
const data = marks.getContext('2d').getImageData(0, 0, width, height).data;
return Array.from({length: width * height}, (_, i) => data[4 * i + 3] >= 128 ? 1 : 0);
"""
MASK = """
const done = arguments[arguments.length - 1];
const {href} = document.querySelectorAll('figure a')[arguments[0]];
fetch(href).then((response) => response.blob()).then((blob) => {
  const reader = new FileReader();
  reader.onload = () => done(reader.result.split(',')[1]);
  reader.readAsDataURL(blob);
});
"""


def labels_of(png: bytes, classes: int) -> np.ndarray:
    """A mask in the colours of its classes as labels."""
    pixels = np.array(Image.open(io.BytesIO(png)).convert("RGB"))
    labels = np.zeros(pixels.shape[:2], np.uint8)
    for number in range(1, classes + 1):
        labels[(pixels == class_colour(number)).all(-1)] = number
    return labels


@pytest.mark.skipif(bool(LACKING), reason=f"needs {', '.join(LACKING)}")
def test_the_page_finds_what_python_finds(site, browser, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    address, model = site
    by, wait = functools.partial(browser.find_element, By.ID), WebDriverWait(browser, PATIENCE)
    browser.get(address)
    wait.until(lambda _: by("add").is_enabled() or by("message").text)
    assert by("message").text == ""
    assert by("status").text == "HDMNet is ready" and not by("progress").is_displayed()
    assert browser.execute_script(
        "return document.documentElement.scrollWidth <= innerWidth && innerWidth <= 500"
    )
    predictor = OnnxPredictor(model)

    def complains(words: str) -> None:
        wait.until(lambda _: words in by("message").text)

    by("segment").click()
    complains("choose pictures to segment")
    image = disc((90, 120), 0)[0]
    by("support").send_keys(str(write(tmp_path / "support.png", image)))
    wait.until(lambda _: by("marks").is_displayed() and by("add").is_enabled())
    by("add").click()
    complains("nothing is marked. Paint over the object.")

    def marked(tool: str, name: str, gesture) -> np.ndarray:
        browser.find_element(By.CSS_SELECTOR, f"[value={tool}]").click()
        canvas = by("marks")
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
        gesture(ActionChains(browser, duration=50), canvas).perform()
        mask = np.array(browser.execute_script(MARKED), np.uint8).reshape(90, 120)
        by("class").clear()
        by("class").send_keys(name)
        before = len(browser.find_elements(By.CSS_SELECTOR, "#supports li"))
        by("add").click()
        wait.until(
            lambda _: len(browser.find_elements(By.CSS_SELECTOR, "#supports li")) == before + 1
        )
        predictor.add_support(image, mask, name)
        return mask

    def drag(actions, canvas):
        actions.move_to_element_with_offset(canvas, -60, -50).click_and_hold()
        return actions.move_by_offset(90, 70).release()

    def corners(actions, canvas):
        for x, y in ((-80, -60), (70, -60), (70, 60), (-80, -60)):
            actions.move_to_element_with_offset(canvas, x, y).click()
        return actions

    box = marked("box", "mug", drag)
    rows, columns = (np.flatnonzero(box.any(axis)) for axis in (1, 0))
    assert box.sum() == rows.size * columns.size and 15 < rows.size < 40
    assert 0 < marked("brush", "mug", drag).sum() < box.sum() * 2
    triangle = marked("polygon", "plate", corners)
    assert 0.3 < triangle.sum() / (triangle.any(1).sum() * triangle.any(0).sum()) < 0.7

    queries = [disc(size, seed)[0] for seed, size in enumerate(((100, 64), (70, 150)), start=5)]
    paths = [str(write(tmp_path / f"{n}.png", query)) for n, query in enumerate(queries)]
    by("queries").send_keys("\n".join(paths))
    by("segment").click()
    wait.until(lambda _: "2 of 2 pictures segmented" in by("status").text)
    assert by("message").text == ""
    for number, query in enumerate(queries):
        found = labels_of(base64.b64decode(browser.execute_async_script(MASK, number)), 2)
        expected = predictor.predict(query).mask
        assert found.shape == expected.shape and len(np.unique(expected)) > 1
        assert (found == expected).mean() > 0.99

    browser.find_elements(By.CSS_SELECTOR, "#supports button")[2].click()
    wait.until(lambda _: len(browser.find_elements(By.CSS_SELECTOR, "#supports li")) == 2)
    text = tmp_path / "text.png"
    text.write_text("hello")
    by("queries").clear()
    by("queries").send_keys(str(text))
    by("segment").click()
    complains("left out: text.png is not a picture that this browser can read")
    assert "0 of 1 pictures segmented" in by("status").text
    serious = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not serious
    assert all(address in name for name in browser.execute_script(
        "return performance.getEntriesByType('resource').map((each) => each.name)"
    ))  # fmt: skip


@pytest.mark.skipif(bool(LACKING), reason=f"needs {', '.join(LACKING)}")
def test_a_folder_without_a_model_is_no_page(tmp_path):
    done = subprocess.run(["sh", WEB / "build.sh", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2 and "holds no query.onnx" in done.stderr
