"""The page in web/, in a real browser: its masks are the Python predictor's."""

from __future__ import annotations

import base64
import functools
import gzip
import io
import json
import subprocess
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmark.browser import WEB, Quiet, chromium, missing, served
from tests.own_pictures import disc, small_config, untrained, write
from util.data.reading import read_image
from util.draw.overlays import class_colour
from util.predict import OnnxPredictor
from util.runtime.errors import FewShotError
from util.weights.onnx_about import About

PATIENCE = 60  # seconds for one step of the page, on a busy machine
LACKING = missing()
needs_browser = pytest.mark.skipif(bool(LACKING), reason=f"needs {', '.join(LACKING)}")


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


@needs_browser
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


def test_a_folder_without_both_files_is_no_page(tmp_path):
    for lacking, name in (("support.onnx", "query.onnx"), ("query.onnx", "support.onnx")):
        model = tmp_path / lacking
        model.mkdir()
        (model / name).write_bytes(b"")
        command = ["sh", WEB / "build.sh", model, tmp_path / "site"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2 and f"{model} holds no {lacking}: " in done.stderr
        assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "site").exists()


# ------------------------------------------------------------------- the page without a network

# In place of onnxruntime-web: each run is told to the server, which answers when the test likes.
STUB = """
export const env = { wasm: {} };
export class Tensor {
  constructor(type, data, dims) { Object.assign(this, { type, data, dims }); }
}
const support = {
  inputNames: ["image", "mask"],
  outputNames: ["red"],
  async run({ image }) {
    const red = Math.round(image.data[0]);
    await fetch(`stub/support/${red}`);
    return { red: new Tensor("float32", new Float32Array([red]), [1, 1]) };
  },
};
const query = {
  inputNames: ["image", "picture", "red"],
  async run({ image, picture, red }) {
    await fetch(`stub/query/${red.data.join()}`);
    const [size, count] = [image.dims[2] ** 2, picture.dims[0]];
    const data = new Float32Array(count * 2 * size).fill(1);
    for (let i = 0; i < count; i++) data.fill(0, 2 * i * size, (2 * i + 1) * size);
    return { final: new Tensor("float32", data, [count, 2, image.dims[2], image.dims[2]]) };
  },
};
export const InferenceSession = {
  async create(bytes) {
    return new TextDecoder().decode(bytes).includes("made for support") ? support : query;
  },
};
"""
ABOUT = About("Stub", "none", "abc", "float32", "final", 16, True, "mask", (0, 0, 0), (1, 1, 1))


class Slow(Quiet):
    """Waits where the test says: before the `headers` of query.onnx, amid the `body` of a model's
    file, or in the `stub`."""

    held: set[str] = set()
    told: list[str] = []
    length = True  # whether that of query.onnx is said
    packed = False  # whether the models' files are gzip

    def wait(self, stage: str) -> None:
        end = time.monotonic() + PATIENCE
        while stage in self.held and time.monotonic() < end:
            time.sleep(0.005)

    def do_GET(self) -> None:
        if self.path.startswith("/stub/"):
            self.told.append(self.path.removeprefix("/stub/"))
            self.wait("stub")
            self.send_response(204)
            return self.end_headers()
        if self.path == "/query.onnx":
            self.wait("headers")
        return super().do_GET()

    def send_header(self, name: str, value: str) -> None:
        if name != "Content-Length" or self.length or self.path != "/query.onnx":
            super().send_header(name, value)

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        if self.packed and self.path.endswith(".onnx"):
            self.send_header("Content-Encoding", "gzip")
        super().end_headers()

    def copyfile(self, source, outputfile) -> None:
        data = source.read()
        if not self.path.endswith(".onnx"):
            return outputfile.write(data)
        outputfile.write(data[: len(data) // 2])
        outputfile.flush()
        self.wait("body")
        outputfile.write(data[len(data) // 2 :])


def export(half: str, /, **properties: object) -> bytes:
    """A file with the metadata of an export; None leaves a field out."""
    import onnx

    model = onnx.ModelProto(producer_name=f"made for {half}")
    model.graph.doc_string = np.random.default_rng(0).bytes(150_000).hex()
    known = {"format": "fewshot-onnx-1"} | {k: json.dumps(v) for k, v in ABOUT._asdict().items()}
    for key, value in (known | properties).items():
        if value is not None:
            model.metadata_props.add(key=key, value=value)
    return model.SerializeToString()


@pytest.fixture(scope="module")
def stub(tmp_path_factory):
    """The page with the stub, open; what is written into its folder is served."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    folder = tmp_path_factory.mktemp("stub")
    site = folder / "site"
    for half in ("support", "query"):
        (folder / f"{half}.onnx").write_bytes(export(half))
    with (
        served(folder, site, Slow) as address,
        chromium(width=900, height=1000) as browser,
    ):
        (site / "ort.wasm.bundle.min.mjs").write_text(STUB)
        wait = WebDriverWait(browser, PATIENCE, poll_frequency=0.02)
        by = functools.partial(browser.find_element, By.ID)

        def until(condition):
            return wait.until(lambda _: condition())

        def opened(ready: bool = True) -> None:
            browser.get(address)
            Slow.told.clear()
            if ready:
                until(lambda: by("add").is_enabled())

        def choose(path, shown: bool = True) -> None:
            by("support").send_keys(str(path))
            if shown:
                until(lambda: by("marks").is_displayed())

        def mark() -> None:
            browser.find_element(By.CSS_SELECTOR, "[value=box]").click()
            start = ActionChains(browser, duration=20).move_to_element(by("marks"))
            start.click_and_hold().move_by_offset(40, 30).release().perform()

        def supports():
            """The first pixel of each support's picture."""
            return browser.execute_script(
                "return [...document.querySelectorAll('#supports canvas')].map("
                "(each) => [...each.getContext('2d').getImageData(0, 0, 1, 1).data.slice(0, 3)])"
            )

        yield SimpleNamespace(
            browser=browser, site=site, address=address, by=by, until=until, opened=opened,
            choose=choose, mark=mark, supports=supports,
        )  # fmt: skip


@pytest.fixture
def page(stub):
    yield stub
    Slow.held.clear()
    Slow.length, Slow.packed = True, False
    for half in ("support", "query"):
        (stub.site / f"{half}.onnx").write_bytes(export(half))


def plain(path, colour, size=(60, 40)):
    Image.new("RGB", size, colour).save(path)
    return path


RED, BLUE, GREY = [255, 0, 0], [100, 0, 255], [50, 50, 50]


@needs_browser
def test_a_support_is_what_was_marked_when_it_was_added(page, tmp_path):
    by, until = page.by, page.until
    red, blue = plain(tmp_path / "red.png", tuple(RED)), plain(tmp_path / "blue.png", tuple(BLUE))
    parts = "const {width, height} = marks; return marks.getContext('2d')"
    parts += ".getImageData(0, 0, width, height).data.some((value) => value)"
    page.opened()
    page.choose(red)
    page.mark()
    Slow.held.add("stub")
    by("add").click()
    until(lambda: Slow.told == ["support/255"])
    page.choose(blue)
    blue_shown = "return shown.getContext('2d').getImageData(0, 0, 1, 1).data[2] === 255"
    until(lambda: page.browser.execute_script(blue_shown))
    page.mark()
    assert not by("add").is_enabled()  # the first is still being added
    Slow.held.clear()
    until(lambda: page.supports() == [RED] and by("add").is_enabled())
    assert page.browser.execute_script(parts) and by("message").text == ""
    by("add").click()
    until(lambda: page.supports() == [RED, BLUE])
    assert Slow.told == ["support/255", "support/100"]
    assert not page.browser.execute_script(parts)

    page.mark()
    Slow.held.add("stub")
    by("add").click()
    until(lambda: len(Slow.told) == 3)
    page.browser.execute_script("support.value = ''; support.dispatchEvent(new Event('change'))")
    until(lambda: not by("sketch").is_displayed())
    Slow.held.clear()
    until(lambda: len(page.supports()) == 3)
    assert by("message").text == ""


@needs_browser
def test_supports_are_removed_however_quickly(page, tmp_path):
    by, until = page.by, page.until
    query = str(plain(tmp_path / "query.png", "white"))
    page.opened()
    by("queries").send_keys(query)
    for number, colour in enumerate((RED, BLUE, GREY), start=1):
        page.choose(plain(tmp_path / f"{number}.png", tuple(colour)))
        until(lambda: by("add").is_enabled())
        page.mark()
        by("add").click()
        until(lambda n=number: len(page.supports()) == n and by("add").is_enabled())

    def removed(*places: int) -> None:
        """While pictures are segmented, which the answers wait for."""
        Slow.held.add("stub")
        before = len(Slow.told)
        by("segment").click()
        until(lambda: len(Slow.told) == before + 1)
        for place in places:
            page.browser.execute_script(
                "document.querySelectorAll('#supports button')[arguments[0]].click()", place
            )
        Slow.held.clear()
        until(lambda: by("segment").is_enabled())

    removed(0, 2)
    until(lambda: page.supports() == [BLUE])
    removed()
    assert Slow.told[3:] == ["query/255,100,50", "query/100"]
    removed(0)
    until(lambda: page.supports() == [])
    by("queries").send_keys(query)
    by("segment").click()
    until(lambda: by("message").text == "no support yet: mark an object first")


@needs_browser
def test_a_picture_that_cannot_be_read_leaves_none(page, tmp_path):
    by, until = page.by, page.until
    page.opened()
    page.choose(plain(tmp_path / "red.png", tuple(RED)))
    page.mark()
    bad = tmp_path / "bad.png"
    bad.write_text("hello")
    page.choose(bad, shown=False)
    until(lambda: by("message").text == "bad.png is not a picture that this browser can read")
    assert not by("sketch").is_displayed()
    until(lambda: by("add").is_enabled())
    by("add").click()
    until(lambda: by("message").text == "choose a picture first")

    # A large picture is overtaken by a small one, which stays.
    page.browser.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "const make = globalThis.createImageBitmap; let count = 0;"
        "globalThis.createImageBitmap = async (...all) => {"
        "  const first = !count++; const made = await make(...all);"
        "  if (first) await new Promise((go) => (globalThis.go = go)); return made; }; done();"
    )
    page.choose(plain(tmp_path / "first.png", tuple(RED)), shown=False)
    until(lambda: page.browser.execute_script("return !!globalThis.go"))
    page.choose(plain(tmp_path / "second.png", tuple(BLUE), size=(30, 50)))
    page.browser.execute_script("globalThis.go()")
    until(lambda: by("add").is_enabled())
    assert page.browser.execute_script("return [shown.width, shown.height]") == [30, 50]


@needs_browser
def test_what_cannot_be_segmented_is_named(page, tmp_path):
    by, until = page.by, page.until
    names = [str(plain(tmp_path / f"{name}.png", "white")) for name in "abc"]
    page.opened()
    by("queries").send_keys("\n".join(names))
    by("segment").click()
    until(lambda: by("message").text == "no support yet: mark an object first")
    page.choose(plain(tmp_path / "red.png", tuple(RED)))
    page.mark()
    by("add").click()
    until(lambda: len(page.supports()) == 1)
    Slow.held.add("stub")
    by("segment").click()
    until(lambda: Slow.told[-1] == "query/255")
    page.browser.find_element("css selector", "#supports button").click()
    Slow.held.clear()
    until(lambda: by("segment").is_enabled())
    lacking = "no support yet: mark an object first"
    assert by("message").text == f"left out: b.png: {lacking}; c.png: {lacking}"


@needs_browser
def test_large_pictures_are_drawn_small_and_kept_whole(page, tmp_path):
    by, until = page.by, page.until
    large = plain(tmp_path / "large.png", tuple(RED), size=(2400, 1600))
    page.opened()
    page.browser.execute_script(
        "globalThis.shut = 0; const {close} = ImageBitmap.prototype;"
        "ImageBitmap.prototype.close = function () { shut += 1; close.call(this); }"
    )
    page.choose(large)
    page.mark()
    by("add").click()
    until(lambda: page.supports() == [RED])
    by("queries").send_keys(str(large))
    by("segment").click()
    until(lambda: "1 of 1 pictures segmented" in by("status").text)
    sizes = "return [...document.querySelectorAll(arguments[0])].map((e) => [e.width, e.height])"
    assert page.browser.execute_script(sizes, "#supports canvas") == [[300, 200]]
    assert page.browser.execute_script(sizes, "figure canvas") == [[1200, 800]]
    assert page.browser.execute_script("return shut") == 2
    mask = labels_of(base64.b64decode(page.browser.execute_async_script(MASK, 0)), 1)
    assert mask.shape == (1600, 2400) and mask.all()


READ = """
const done = arguments[arguments.length - 1];
(async () => {
  const { read } = await import("./pictures.js");
  const bytes = Uint8Array.from(atob(arguments[1]), (letter) => letter.charCodeAt(0));
  const { width, height, data } = await read(new File([bytes], arguments[0]));
  return [width, height, [...data]];
})().then(done, ({ message }) => done(message));
"""


@needs_browser
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_pictures_are_read_as_python_reads_them(page, tmp_path):
    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(0, 256, (3, 5, 4), np.uint8), np.ones((8, 8, 1), np.uint8))
    pixels[:8, :, 3] = 0
    clear, opaque = Image.fromarray(pixels), Image.fromarray(pixels[..., :3])
    clear.save(tmp_path / "clear.png")
    clear.save(tmp_path / "clear.webp", lossless=True, exact=True)
    for orientation in range(1, 9):
        exif = opaque.getexif()
        exif[0x0112] = orientation
        opaque.save(tmp_path / f"{orientation}.webp", exif=exif, lossless=True)
    exif[0x0112] = 6
    clear.save(tmp_path / "clear6.webp", exif=exif, lossless=True, exact=True)
    opaque.save(tmp_path / "6.png", exif=exif)
    opaque.save(tmp_path / "6.jpg", exif=exif, quality=95)
    opaque.save(tmp_path / "broken.webp", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f", lossless=True)
    write(tmp_path / "deep.png", rng.integers(0, 65536, (4, 5), np.uint16))
    page.opened()

    def found(path):
        data = base64.b64encode(path.read_bytes()).decode()
        return page.browser.execute_async_script(READ, path.name, data)

    for path in sorted(tmp_path.iterdir()):
        if path.name == "deep.png":
            with pytest.raises(FewShotError) as error:
                read_image(path)
            assert found(path) == str(error.value).replace(str(path), path.name)
            continue
        width, height, data = found(path)
        there = np.array(data).reshape(height, width, 4)
        assert (there[..., 3] == 255).all(), path.name
        apart = np.abs(there[..., :3] - read_image(path).astype(int)).max()
        assert apart <= (3 if path.suffix == ".jpg" else 0), path.name
    # Beyond what WebGL takes, what a 2D canvas gives: the colours are rounded, clear pixels black.
    long = np.full((1, 20_000, 4), 200, np.uint8)
    Image.fromarray(long).save(tmp_path / "long.png")
    width, height, data = found(tmp_path / "long.png")
    assert (width, height) == (20_000, 1) and max(abs(value - 200) for value in data[:3]) < 3


@needs_browser
def test_files_that_are_no_model_are_named(page):
    by, until = page.by, page.until
    support, query = page.site / "support.onnx", page.site / "query.onnx"
    whole = {"support": export("support"), "query": export("query")}
    foreign = "query.onnx was not written by util.export onnx"
    damaged = "query.onnx is a damaged export: "
    two = "support.onnx and query.onnx are of two exports: export them anew"
    swapped = "support.onnx holds what belongs in query.onnx: export both files anew"
    twice = "query.onnx holds what belongs in support.onnx: export both files anew"
    cases = [
        ({"query": b"A page that was not found.\n"}, foreign),
        ({"query": b"\0\0\xff"}, foreign),
        ({"query": whole["query"][:-5]}, foreign),
        ({"query": export("query", format="fewshot-onnx-9")}, foreign),
        ({"query": export("query", val_size=None)}, damaged + "val_size is missing"),
        ({"query": export("query", val_size='"16"')}, damaged + 'val_size cannot be "16"'),
        ({"query": export("query", std="null")}, damaged + "std cannot be null"),
        ({"query": export("query", arch="Stub")}, damaged + "arch cannot be Stub"),
        ({"query": export("query", weights='"int8"')}, two),
        ({"query": export("query", mean="[0, 0, 1]")}, two),
        ({"support": whole["query"], "query": whole["support"]}, swapped),
        ({"query": whole["support"]}, twice),
        ({"support": export("support", half='"query"')}, swapped),
        ({"support": export("support", half="query")},
         "support.onnx is a damaged export: half cannot be query"),
        ({"support": export("support", half='"support"'), "query": export("query", half='"query"')},
         None),
        ({"query": None}, "query.onnx cannot be loaded (404)"),
    ]  # fmt: skip
    for files, sentence in cases:
        for path in (support, query):
            data = {**whole, **files}[path.stem]
            path.unlink() if data is None else path.write_bytes(data)
        page.opened(ready=False)
        until(lambda: by("message").text or by("add").is_enabled())
        assert by("message").text == (sentence or "")
        assert not by("progress").is_displayed()
        assert by("status").text == (
            "The model could not be loaded." if sentence else "Stub is ready"
        )
        query.touch()


@needs_browser
def test_a_page_that_cannot_start_says_so(page):
    by, until = page.by, page.until
    runtime = page.site / "ort.wasm.bundle.min.mjs"
    runtime.unlink()
    try:
        page.opened(ready=False)
        until(lambda: by("message").text)
        assert by("message").text.endswith("build the site with web/build.sh")
        assert by("status").text == "The model could not be loaded."
        assert not by("progress").is_displayed()
    finally:
        runtime.write_text(STUB)
    page.browser.get((page.site / "index.html").as_uri())
    assert by("status").text.startswith("This page must be served by a web server")
    assert not by("progress").is_displayed()


@needs_browser
def test_progress_is_told_as_far_as_it_is_known(page):
    by, until = page.by, page.until

    def told() -> str | None:
        return page.browser.execute_script("return progress.getAttribute('value')")

    size = sum((page.site / f"{half}.onnx").stat().st_size for half in ("support", "query"))
    Slow.held |= {"headers", "body"}
    page.opened(ready=False)
    time.sleep(0.3)
    assert by("status").text == "Loading the model …" and told() is None
    Slow.held.remove("headers")
    until(lambda: f" of {size / 1e6:.1f} MB" in by("status").text)
    until(lambda: 0.4 < float(told()) < 0.6)
    Slow.held.clear()
    until(lambda: by("status").text == "Stub is ready")
    for Slow.length, Slow.packed in ((False, False), (True, True)):
        if Slow.packed:
            for half in ("support", "query"):
                (page.site / f"{half}.onnx").write_bytes(gzip.compress(export(half)))
        Slow.held |= {"body"}
        page.opened(ready=False)
        until(lambda: by("status").text.startswith("Loading the model: 0."))
        assert " of " not in by("status").text and told() is None
        Slow.held.clear()
        until(lambda: by("status").text == "Stub is ready")
