"""The web page: its handlers alone, and the whole page in a real browser."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import app
from tests.own_pictures import ROOT, disc, small_config, untrained, with_orientation, write
from util.draw.overlays import class_colour
from util.predict import page, serving
from util.predict.base import Prediction
from util.predict.examples import package_examples
from util.predict.predictor import FewShotPredictor
from util.predict.sketch import Sketch
from util.predict.supports import Support
from util.predict.threshold import class_scores, labels_at
from util.runtime.errors import FewShotError


@pytest.fixture(scope="module")
def predictor() -> FewShotPredictor:
    cfg = small_config()
    return FewShotPredictor(untrained(cfg), cfg, "cpu")


def painted(image: np.ndarray, mask: np.ndarray) -> dict:
    """What gr.ImageEditor hands over: RGBA picture and one RGBA layer with the paint."""
    layer = np.zeros((*mask.shape, 4), np.uint8)
    layer[mask == 1] = (230, 159, 0, 153)
    opaque = np.full((*mask.shape, 1), 255, np.uint8)
    return {"background": np.concatenate([image, opaque], axis=2), "layers": [layer]}


def test_upload_limits(tmp_path):
    huge = tmp_path / "huge.jpg"
    Image.new("RGB", (10_000, 6_000)).save(huge)
    with pytest.raises(FewShotError, match="60 megapixels; the limit is 40"):
        page.load_picture(str(huge))
    bomb = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(bomb)
    with pytest.raises(FewShotError, match="limit of 40 megapixels"):
        page.load_picture(str(bomb))
    text = tmp_path / "text.jpg"
    text.write_text("hello")
    with pytest.raises(FewShotError, match="text.jpg is not a picture"):
        page.load_picture(str(text))
    phone = write(tmp_path / "phone.jpg", disc((60, 80), 0)[0])
    with_orientation(phone, 6)
    assert page.load_picture(str(phone)).shape == (80, 60, 3)
    phone.write_bytes(phone.read_bytes()[:600])
    with pytest.raises(FewShotError, match="phone.jpg"):
        page.load_picture(str(phone))


def test_canvas_and_paint():
    image, mask = disc((60, 80), 0)
    assert page.fit_canvas(image) is image
    assert app.fit_canvas is page.fit_canvas and app.load_picture is page.load_picture
    assert page.fit_canvas(np.zeros((3000, 4000, 3), np.uint8)).shape == (576, 768, 3)
    picture, found = page.painted_mask(painted(image, mask))
    assert (picture == image).all() and (found == mask).all()
    for empty in (None, {"background": None, "layers": []}):
        with pytest.raises(FewShotError, match="upload a support"):
            page.painted_mask(empty)
    with pytest.raises(FewShotError, match="nothing is painted"):
        page.painted_mask(painted(image, 0 * mask))


def test_session(predictor, tmp_path, monkeypatch):
    session = page.Session(predictor.without_supports())
    other = page.Session(predictor.without_supports())
    query = str(write(tmp_path / "query.png", disc((50, 70), 5)[0]))

    def segment(session, paths):
        return session.segment(paths, tmp_path, lambda items, desc: items)

    with pytest.raises(FewShotError, match="add a support"):
        segment(session, [query])
    session.add(painted(*disc((60, 80), 0)), " mug ")
    session.add(painted(*disc((60, 80), 1)), "mug")
    session.add(painted(*disc((60, 80), 2)), "")
    assert session.predictor.shots == {"mug": 2, "object": 1}
    assert other.predictor.classes == ()
    assert [name for _, name in session.gallery] == ["mug", "mug", "object"]
    with pytest.raises(FewShotError, match="at most 60"):
        session.add(painted(*disc((60, 80), 2)), "x" * 61)
    with pytest.raises(FewShotError, match="drop in"):
        segment(session, [])
    with pytest.raises(FewShotError, match="segment pictures first"):
        session.repack(0.5)
    text = tmp_path / "text.jpg"
    text.write_text("hello")
    with pytest.raises(FewShotError, match="text.jpg"):
        segment(session, [str(text)])
    message = segment(session, [query, str(text)])
    assert re.match(r"1 of 2 pictures segmented in \d+\.\d s, .* each.*text.jpg", message, re.S)
    expected = session.predictor.predict(disc((50, 70), 5)[0])
    (mask, caption), (_, span) = session.masks()
    shares = [round(100 * (expected.mask == number).mean()) for number in (1, 2)]
    assert caption == f"mug · {shares[0]} %, object · {shares[1]} % (query.png)"
    assert re.fullmatch(r"0\.\d\d–0\.\d\d probability", span) and mask.shape == (50, 70, 3)
    assert len(session.maps()) == 2 * 3

    def labels():
        with zipfile.ZipFile(session.archive) as file:
            assert {"summary.json", "labels/01_query.png", "overlays/01_query.jpg"} <= set(
                file.namelist()
            )
            (entry,) = json.loads(file.read("summary.json"))
            with file.open("labels/01_query.png") as label:
                return np.array(Image.open(label)), entry

    found, entry = labels()
    assert (found == expected.mask).all() and "threshold" not in entry
    # Another threshold needs no model, and what is shown is what is packed.
    monkeypatch.setattr(FewShotPredictor, "predict", None)
    scores = class_scores(expected.probabilities)
    threshold = float(np.quantile(scores.max(0), 0.7))
    assert session.masks(threshold)[0][1] != caption
    assert session.repack(threshold)
    found, entry = labels()
    assert entry["threshold"] == threshold
    assert entry["classes"]["mug"]["pixels"] == (found == 1).sum()
    clear = np.abs(scores.max(0) - threshold) > 0.01
    assert (found == labels_at(scores, threshold))[clear].all() and 0.1 < (found > 0).mean() < 0.5
    # Back at 0.5 everything is the model's own decision again, to the last pixel.
    assert session.masks(0.5)[0][1] == caption and session.repack(0.5)
    found, entry = labels()
    assert (found == expected.mask).all() and "threshold" not in entry
    monkeypatch.undo()

    before = session.archive
    segment(session, [query])
    assert session.archive.is_file() and not before.is_file()
    assert [p for p in tmp_path.iterdir() if p.is_dir()] == [session.results]
    Path(query).unlink()
    session.masks(0.4)
    assert not session.repack(0.6)  # it is not what is shown
    with pytest.raises(FewShotError, match="query.png is no longer here"):
        session.repack(0.4)
    session.close()
    assert session.masks() == [] and not any(p.is_dir() for p in tmp_path.iterdir())


def test_session_with_clicks(predictor):
    session = page.Session(predictor.without_supports())
    with pytest.raises(FewShotError, match="upload a support picture first"):
        session.add(None, "mug")
    image, _ = disc((60, 80), 0)
    session.sketch = Sketch(image, "box")
    with pytest.raises(FewShotError, match="nothing is marked. Click two opposite corners"):
        session.add(None, "mug")
    session.sketch.click(10, 10)
    session.sketch.click(40, 50)
    session.add(None, "mug")
    assert session.predictor.shots == {"mug": 1}
    assert session.colour("mug") == class_colour(1) and session.colour("new") == class_colour(2)
    session.sketch.click(10, 60)
    session.add(None, "mug")
    session.add(None, "plate")
    session.remove_last()
    assert session.predictor.shots == {"mug": 2} and len(session.gallery) == 2
    session.remove_last()
    assert session.predictor.shots == {"mug": 1}
    session.clear()
    assert session.predictor.classes == () and session.gallery == []
    with pytest.raises(FewShotError, match="no support to remove"):
        session.remove_last()


def test_several_pictures_are_marked_one_after_the_other(predictor, tmp_path):
    session = page.Session(predictor.without_supports())
    paths = [str(write(tmp_path / f"{n}.png", disc((40 + n, 50), n)[0])) for n in range(3)]
    rows = [session.open(paths, "box").shape[0], *(session.next("box").shape[0] for _ in "123")]
    assert rows == [40, 41, 42, 40] and session.sketch.image.shape[0] == 40
    assert page.paths_in([session]) == set(map(Path, paths))
    assert session.open([], "box") is None and session.next("box") is None
    assert session.sketch is None


def test_the_marks_stay_as_long_as_their_picture(predictor, tmp_path):
    session = page.Session(predictor.without_supports())
    paths = [str(write(tmp_path / f"{n}.png", disc((40 + n, 50), n)[0])) for n in range(3)]
    session.open(paths[:2], "box")
    session.next("box")
    marks = session.sketch
    assert session.open(paths, "box") is marks.image and session.sketch is marks
    assert session.pictures == [paths[1], paths[0], paths[2]]
    session.open(paths[1:], "box")
    assert session.sketch is marks and session.pictures == paths[1:]
    assert session.open(paths[2:], "box").shape[0] == 42 and session.sketch is not marks


def test_annotation_files_among_the_uploads(predictor, tmp_path):
    """gradio puts every upload into a folder of its own."""
    session = page.Session(predictor.without_supports())
    image = disc((60, 80), 0)[0]
    picture, other = (write(tmp_path / n / f"{n}.jpg", image) for n in "ab")
    with_orientation(picture, 6)

    def labelme(*shapes, size=(60, 80)) -> str:
        path = tmp_path / "c" / "a.json"
        path.parent.mkdir(exist_ok=True)
        shapes = [{"label": name, "points": points} for name, points in shapes]
        sides = {"imageHeight": size[0], "imageWidth": size[1]}
        path.write_text(json.dumps({"shapes": shapes, "imagePath": "a.jpg", **sides}))
        return str(path)

    square = [[10, 10], [50, 10], [50, 40], [10, 40]]
    file = labelme(("mug", square), ("plate", square[:3]))
    left_out = session.take_files([str(picture), file, str(other)], tmp_path)
    assert session.predictor.shots == {"mug": 1, "plate": 1}
    assert [tile.shape for tile, _ in session.gallery] == [(60, 80, 3)] * 2  # as it is stored
    assert len(left_out) == 1 and left_out[0].startswith("left out: 1 picture (b.jpg)")
    two_points, another_shape = {"square": square[:2]}, {"size": (60, 300)}
    for uploads, changes, words in (
        ([], {}, r"^a\.json is about a\.jpg, and there is no such picture"),
        ([picture, picture], {}, "two uploads are called a.jpg"),
        ([picture], two_points, r"^a\.json: shape 0 .'mug'.: a polygon of 2"),
        ([picture], another_shape, r"^a\.json says that a\.jpg has 300×60 pixels"),
    ):
        points = changes.pop("square", square)
        file = labelme(("mug", points), **changes)
        with pytest.raises(FewShotError, match=words):
            session.take_files([file, *map(str, uploads)], tmp_path)
    assert session.predictor.shots == {"mug": 1, "plate": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]


@pytest.mark.skipif(package_examples() is None, reason="needs gradio's photographs")
def test_the_example(predictor, tmp_path):
    examples = package_examples()
    assert [support.class_name for support in examples.supports] == ["cheetah", "lion"]
    assert len(examples.queries) >= 2 and all(path.is_file() for path in examples.queries)
    session = page.Session(predictor.without_supports())
    session.add(painted(*disc((60, 80), 0)), "mug")
    session.take(examples.supports)
    assert session.predictor.shots == {"mug": 1, "cheetah": 1, "lion": 1}
    assert len(session.gallery) == 3


def test_no_example_without_its_pictures(monkeypatch):
    monkeypatch.setattr("util.predict.examples.find_spec", lambda name: None)
    assert package_examples() is None


def test_legends_are_html_of_any_name():
    assert page.legend(["a<b>", "c"]).count("■") == 2
    assert "a&lt;b&gt; × 3</span>" in page.legend({"a<b>": 3})
    assert page.legend({}) == ""


def test_without_gradio_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_OFFLINE", "HF_HOME",
                 "MPLCONFIGDIR"):  # fmt: skip
        monkeypatch.setenv(name, "")
    with pytest.raises(FewShotError, match="requirements-app.txt"):
        serving.gradio_in(tmp_path)


@pytest.mark.parametrize("port", ["99999", "0", "-1", "80.0", "http", "٣"])
def test_ports_that_are_none(port):
    with pytest.raises(FewShotError, match=f"--port {port}: a port is a number from 1 to 65535"):
        app.parse([f"--port={port}"])
    assert app.parse(["--port", "65535"]).port == 65535


def test_a_port_in_use_and_too_few_files_show_before_a_model_is_loaded(monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["app.py", "--weight", "no.pth", "--port", str(port)])
        with pytest.raises(FewShotError, match=rf"port {port} \(Address.*in use\); --port names"):
            app.main()
    monkeypatch.setattr(serving.resource, "getrlimit", lambda _: (32, 32))
    with pytest.raises(FewShotError, match=r"may have 32 \(ulimit -n.*needs 128"):
        app.main()


def test_the_oldest_files_go_first_and_what_is_in_use_stays(tmp_path):
    for number, name in enumerate(("b/1", "a/2", "c/3", "c/4", "work-x/5", "cache/6", "d/7")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(100))
        os.utime(path, (number, number))
    page.keep_small(tmp_path, {tmp_path / "a/2"}, limit=200)
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert left == ["a/2", "c/4", "cache/6", "d/7", "work-x/5"]
    assert not (tmp_path / "b").exists()
    page.keep_small(tmp_path / "nowhere", set())
    assert page.paths_in(("x", ["/a/b", None], 3, {"y": 1})) == {Path("/a/b")}


@pytest.fixture
def built(predictor, tmp_path):
    """The page, and its handlers by their names."""
    built = app.build_page(pytest.importorskip("gradio"), predictor.without_supports, tmp_path)
    return built, {block.fn.__name__: block.fn for block in built.fns.values() if block.fn}


@pytest.fixture
def told(monkeypatch):
    """The sentences that the page says."""
    gradio, said = pytest.importorskip("gradio"), []
    monkeypatch.setattr(gradio, "Warning", lambda text, **more: said.append(text))
    monkeypatch.setattr(gradio, "Info", lambda text, **more: None)
    return said


def test_the_last_threshold_is_the_one_that_is_packed(built, predictor, tmp_path):
    built, handlers = built
    modes = {block.fn.__name__: block.trigger_mode for block in built.fns.values() if block.fn}
    assert modes["move"] == modes["repack"] == "always_last"
    session = page.Session(predictor.without_supports())
    session.add(painted(*disc((60, 80), 0)), "mug")
    query = str(write(tmp_path / "query" / "query.png", disc((50, 70), 5)[0]))
    session.segment([query], tmp_path, lambda items, desc: items)
    handlers["move"](0.4, session)
    handlers["move"](0.6, session)
    assert "interactive" not in handlers["repack"](0.4, [query], session)
    assert handlers["repack"](0.6, [query], session).interactive


def test_an_upload_becomes_a_support_once(built, told, predictor, tmp_path):
    handlers = built[1]
    picture, other = (
        str(write(tmp_path / name / f"{name}.png", disc((60, 80), 0)[0])) for name in "ab"
    )
    square = {"label": "mug", "points": [[10, 10], [50, 10], [50, 40], [10, 40]]}
    labelme = tmp_path / "c" / "a.json"
    labelme.parent.mkdir()
    size = {"imageHeight": 60, "imageWidth": 80}
    labelme.write_text(json.dumps({"shapes": [square], "imagePath": "a.png", **size}))
    session = page.Session(predictor.without_supports())
    all_three = [picture, str(labelme), other]
    for paths in (all_three[:2], all_three, [picture, other], [other]):
        shown = handlers["show_support"](paths, "box", "mug", session)
        assert session.predictor.shots == {"mug": 1} and told == []
    assert session.pictures == [other] and shown[1] == {"__type__": "update"}


def test_supports_change_while_pictures_are_segmented(predictor, tmp_path):
    session = page.Session(predictor.without_supports())
    session.add(painted(*disc((60, 80), 0)), "mug")
    query = str(write(tmp_path / "query.png", disc((50, 70), 5)[0]))

    def meanwhile(items, desc):
        yield items[0]
        session.add(painted(*disc((60, 80), 1)), "plate")
        yield items[1]
        session.clear()
        yield items[2]

    assert session.segment([query] * 3, tmp_path, meanwhile).startswith("3 of 3")
    assert {each.result.classes for each in session.shown} == {("mug",)}
    assert session.predictor.shots == {} and session.gallery == []


def test_short_handlers_of_a_visitor_run_one_after_the_other(built, predictor, monkeypatch):
    session, free = page.Session(predictor.without_supports()), []

    def remove_last(session):
        other = threading.Thread(target=lambda: free.append(session.lock.acquire(blocking=False)))
        other.start()
        other.join()

    monkeypatch.setattr(page.Session, "remove_last", remove_last)
    built[1]["remove"](session, app.NO_SUPPORTS)
    assert free == [False] and session.lock.acquire(blocking=False)


def test_each_visitor_has_one_session_from_the_start(built):
    (state,) = (block for block in built[0].blocks.values() if hasattr(block, "time_to_live"))
    first, second = copy.deepcopy(state.value), copy.deepcopy(state.value)
    assert first is not second and first.predictor.model is second.predictor.model
    first.add(painted(*disc((60, 80), 0)), "mug")
    assert second.predictor.classes == () and first in page.Session.all()
    json.dumps(built[0].get_config_file(), default=str)


def test_what_any_visitor_may_ask_for_again_stays(built, predictor, tmp_path, monkeypatch):
    handlers = built[1]
    session, other = (page.Session(predictor.without_supports()) for _ in "12")
    session.add(painted(*disc((60, 80), 0)), "mug")
    first, second, support, nobodys = (
        write(tmp_path / name / "a.png", disc((50, 70), 5)[0]) for name in "abcd"
    )
    handlers["segment"]([str(first)], session, "")
    handlers["keep"]([str(second)], session)
    handlers["show_support"]([str(support)], "box", "mug", session)
    monkeypatch.setattr(page.keep_small, "__defaults__", (0,))
    handlers["clear"](other)
    assert first.is_file() and second.is_file() and support.is_file() and not nobodys.exists()
    assert session.archive.is_file()


def test_a_page_that_was_forgotten_says_so(built, told, predictor):
    handlers, shots = built[1], page.legend({"mug": 1})
    skipped = {"__type__": "update"}
    assert handlers["move"](0.4, None) == skipped and told == [app.FORGOTTEN]
    assert handlers["repack"](0.4, None, None) == skipped and told == [app.FORGOTTEN]
    assert handlers["segment"](["a.png"], None, shots) == skipped
    assert handlers["remove"](None, shots) == skipped and told == [app.FORGOTTEN] * 3
    paint = painted(*disc((60, 80), 0))
    session, *_ = handlers["add"](paint, "brush", "mug", None, shots)
    assert session.predictor.shots == {"mug": 1} and told == [app.FORGOTTEN] * 4


def test_presence_is_told_of_every_class(predictor):
    image = disc((50, 70), 5)[0]
    mask = np.zeros((50, 70), np.uint8)
    mask[:25] = 1
    maps = {"mug": [], "plate": []}
    presence = {"mug": 0.89, "plate": 0.1}
    probabilities = np.full((3, 50, 70), 1 / 3, np.float32)
    result = Prediction(
        mask, probabilities, ("mug", "plate"), {}, maps, presence, absent=("plate",)
    )
    each = page.Segmented.of("a/query.png", "01_query", image, result)
    words = "mug · 50 % (89 % likely), plate · not found (10 % likely) (query.png)"
    assert each.caption(each.labels) == words
    assert app.parse(["--presence", "0.3"]).presence == 0.3
    with pytest.raises(FewShotError, match="--presence 2: a presence lies between 0 and 1"):
        app.parse(["--presence", "2"])


def test_thirty_requests_leave_a_folder_of_bounded_size(predictor, tmp_path, monkeypatch):
    gradio = pytest.importorskip("gradio")
    monkeypatch.setattr(page.keep_small, "__defaults__", (300_000,))
    built = app.build_page(gradio, predictor.without_supports, tmp_path)
    handlers = {block.fn.__name__: block.fn for block in built.fns.values() if block.fn}
    session, *_ = handlers["add"](
        painted(*disc((60, 80), 0)), "brush", "mug", None, app.NO_SUPPORTS
    )
    shown = np.random.default_rng(0)
    for number in range(30):
        query = write(tmp_path / f"upload{number}" / "query.png", disc((50, 70), number)[0])
        _, message, *_ = handlers["segment"]([str(query)], session, "")
        assert message.startswith("1 of 1") and query.is_file() and session.archive.is_file()
        # As gradio does with every picture that it shows.
        (tmp_path / f"shown{number}").mkdir()
        (tmp_path / f"shown{number}" / "image.webp").write_bytes(shown.bytes(100_000))
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert 200_000 < size < 500_000
    with pytest.raises(FewShotError, match="query.png is no longer here: drop it in again"):
        page.load_picture(str(tmp_path / "upload0" / "query.png"))


# ------------------------------------------------------------------------------ in a real browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
MISSING = [
    name
    for name, found in (
        ("gradio", importlib.util.find_spec("gradio")),
        ("selenium", importlib.util.find_spec("selenium")),
        ("chromium", CHROMIUM),
        ("chromedriver", DRIVER),
    )
    if not found
]
PATIENCE = 60  # seconds for one step of the page, on a busy machine


def until(condition, what: str):
    """The first true value of ``condition()``."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError(f"waited {PATIENCE} s for {what}")


@pytest.fixture
def served(tmp_path):
    """The page on a free port, run from and with a home in folders that must stay as they are."""
    cfg = small_config()
    weight = tmp_path / "best.pth"
    torch.save({"model": untrained(cfg).state_dict(), "config": cfg.to_dict()}, weight)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home, temporary = tmp_path / "home", tmp_path / "temporary"
    home.mkdir()
    temporary.mkdir()
    environment = os.environ | {
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    words = [sys.executable, ROOT / "app.py", "--weight", weight, "--port", port, "--device", "cpu"]
    with open(tmp_path / "app.log", "w") as log:
        server = subprocess.Popen(
            [str(word) for word in words], cwd=home, env=environment, stdout=log, stderr=log
        )
    try:
        yield server, port, home, temporary
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def browser(tmp_path):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--enable-unsafe-swiftshader",
        "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--window-size=1400,1600",
        f"--user-data-dir={tmp_path / 'profile'}",
    ):  # fmt: skip
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver, downloads
    driver.save_screenshot(str(tmp_path / "last.png"))  # what it looked like when a test failed
    driver.quit()


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")
def test_page_in_chromium(served, browser, tmp_path):
    from selenium.common.exceptions import WebDriverException
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    server, port, home, temporary = served
    page, downloads = browser

    def find(css):
        return page.find_elements(By.CSS_SELECTOR, css)

    def text(css):
        # Names of files are broken up for display.
        return "".join(element.text for element in find(css)).replace("\n", "")

    def opened():
        assert server.poll() is None, (tmp_path / "app.log").read_text()
        try:
            page.get(f"http://127.0.0.1:{port}")
        except WebDriverException:
            return False
        return True

    def upload(where, path):
        for old in find(f"#{where} button[aria-label='Clear'], #{where} button[title='Clear']"):
            old.click()
        field = until(lambda: find(f"#{where} input[type=file]"), f"the field of {where}")[0]
        field.send_keys(str(path))

    def refused(words):
        until(lambda: words in text(".toast-body"), f"the message '{words}'")
        for close in find(".toast-close"):
            page.execute_script("arguments[0].click()", close)
        until(lambda: not find(".toast-body"), "the message to close")

    image, _ = disc((300, 400), 0)
    support = write(tmp_path / "support.jpg", image)
    query = write(tmp_path / "query.jpg", disc((240, 320), 1)[0])
    huge, fake = tmp_path / "huge.jpg", tmp_path / "fake.jpg"
    Image.new("RGB", (10_000, 6_000)).save(huge)
    fake.write_text("no picture at all")

    until(opened, "the server")
    parts = ("#support input", "#editor", "#add", "#queries input", "#segment", "#download")
    until(lambda: all(map(find, parts)), "the page")

    # Mistakes first: each gives a message, and everything still works afterwards.
    find("#segment")[0].click()
    refused("add a support first")
    upload("support", huge)
    refused("60 megapixels")
    upload("support", fake)
    refused("fake.jpg is not a picture")
    find("#add")[0].click()
    refused("upload a support picture first")

    upload("support", support)
    until(lambda: find("#editor canvas") and "support.jpg" in text("#support"), "the editor")
    # The canvas shows the picture when the browser's own copy of it is not one colour any more.
    time.sleep(3)
    find("#add")[0].click()
    refused("nothing is painted")

    canvas = find("#editor canvas")[0]
    stroke = ActionChains(page).move_to_element(canvas).click_and_hold()
    for step in ((20, 0), (20, 10), (-20, 10), (-20, 5)):
        stroke = stroke.move_by_offset(*step)
    stroke.release().perform()
    find("#add")[0].click()
    until(lambda: "object × 1" in text("#shots"), "the support")
    until(lambda: find("#supports img"), "the picture of the support")
    assert "Masks and probability maps appear here" in text("#empty")

    # Two clicks span a box of another class; a third one, taken back, changes nothing.
    def press(element):
        page.execute_script("arguments[0].click()", element)

    def corner(part):
        picture = find("#sketch img")[0]
        before = picture.get_attribute("src")
        page.execute_script("arguments[0].scrollIntoView({block: 'center'})", picture)
        across, down = (round(part * picture.size[side]) for side in ("width", "height"))
        ActionChains(page).move_to_element_with_offset(picture, across, down).click().perform()
        until(lambda: find("#sketch img")[0].get_attribute("src") != before, "the click")

    press(find("#tool input[value=box]")[0])
    until(lambda: "two opposite corners" in text("#tool"), "the tool")
    until(lambda: find("#sketch img"), "the picture to click on")
    field = find("#class textarea, #class input")[0]
    field.clear()
    field.send_keys("box")
    find("#add")[0].click()
    refused("nothing is marked. Click two opposite corners")
    for part in (-0.25, 0.25, 0.4):
        corner(part)
    press(find("#undo")[0])
    find("#add")[0].click()
    until(lambda: "box × 1" in text("#shots"), "the box")

    upload("queries", query)
    until(lambda: "query.jpg" in text("#queries"), "the query")
    find("#segment")[0].click()
    until(lambda: "1 of 1 pictures" in text("#status"), "the result")
    shown = until(lambda: find("#masks img"), "a mask image")[0]
    until(lambda: page.execute_script("return arguments[0].naturalWidth", shown) == 320, "its size")
    assert re.search(r"object · .* %, box · .* %", text("#masks"))
    assert "object" in text("#found") and not text("#empty")
    assert find("#download")[0].location["y"] < find("#masks")[0].location["y"]

    def packed():
        until(lambda: find("#download:not([disabled])"), "the download button")
        button = find("#download")[0]
        page.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()
        archive = until(lambda: list(downloads.glob("*.zip")), "the download")[0]
        with zipfile.ZipFile(archive) as file, file.open("labels/01_query.png") as label:
            found = np.array(Image.open(label))
        archive.unlink()
        return found

    assert packed().shape == (240, 320) and packed().any()
    # Nothing is above the highest threshold, on the page and in the archive.
    before = text("#masks")
    slider = find("#threshold input[type=range]")[0]
    page.execute_script(
        "arguments[0].value = 0.95; for (const name of ['input', 'pointerup', 'change'])"
        "arguments[0].dispatchEvent(new Event(name, {bubbles: true}))", slider
    )  # fmt: skip
    until(lambda: "object · 0 %, box · 0 %" in text("#masks") != before, "the new masks")
    until(lambda: find("#download:not([disabled])"), "the new archive")
    assert not packed().any()
    page.save_screenshot(str(tmp_path / "page.png"))

    if package_examples() is not None:
        press(find("#example")[0])
        until(lambda: "cheetah × 1" in text("#shots"), "the example's supports")
        until(lambda: "cheetah · " in text("#masks"), "the example's masks")
        assert "cheetah.jpg" in text("#queries")

    # It listens on this machine only, wrote to its own folder only, and leaves nothing behind.
    listening = Path(f"/proc/{server.pid}/net/tcp").read_text().splitlines()[1:]
    local = [line.split()[1] for line in listening if line.split()[3] == "0A"]
    assert f"0100007F:{port:04X}" in local and f"00000000:{port:04X}" not in local
    assert list(home.iterdir()) == []
    assert all(path.name.startswith("fewshot-app-") for path in temporary.iterdir())
    server.send_signal(signal.SIGTERM)
    server.wait(60)
    assert list(temporary.iterdir()) == []


def test_supports_from_files_are_added_together_or_not_at_all(predictor, tmp_path):
    """The second one's object vanishes at the network's input size."""
    session = page.Session(predictor.without_supports())
    large, mask = np.zeros((4000, 4000, 3), np.uint8), np.zeros((4000, 4000), np.uint8)
    mask[1, 1] = 1
    good = write(tmp_path / "a.png", disc((60, 80), 0)[0]), [[10, 10], [50, 10], [50, 40]]
    bad = write(tmp_path / "b.png", large), [[1, 1], [3, 1], [3, 3]]
    found = []
    for picture, corners in (good, bad):
        shape = {"label": "mug", "points": corners}
        height, width = large.shape[:2] if picture is bad[0] else (60, 80)
        size = {"imageHeight": height, "imageWidth": width}
        words = {"shapes": [shape], "imagePath": picture.name, **size}
        picture.with_suffix(".json").write_text(json.dumps(words))
        found.append(Support(picture, str(picture.with_suffix(".json")), "mug"))
    with pytest.raises(FewShotError, match="vanishes"):
        session.take(found)
    assert session.predictor.shots == {} and session.gallery == []
    session.take(found[:1])
    assert session.predictor.shots == {"mug": 1}
