"""Names are anybody's: charts, panels, files, tables, TensorBoard and screens take every text."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.training_case import ROOT
from util.draw.charts import class_iou_chart, label, leakage_chart, run_spread_chart
from util.draw.panels import font, grid, panel, plain
from util.evaluate import grid as text_grid
from util.predict.predictor import Prediction
from util.predict.segmented import CANVAS, fit_canvas
from util.predict.writing import write_results
from util.report.tables import markdown_table
from util.runtime.errors import run
from util.runtime.files import file_name, write_json
from util.train.log import RunLog

NAMES = (
    "$5 & $10 notes", "Ba$$in", "50% _$x_$y", "two\nlines\r\n", "n/a", "../up", "梨", "🍐 pear", "",
    "_", "a\\$b", "tab\tbell\a\x1b[31m", "\ud800 half", "\udcff not UTF-8", "x" * 5000, "梨" * 500,
    "r\u0301e\u0301", "\u202eright to left", "|pipe|", "\0", "a\u0350 b\U000e0100",
)  # fmt: skip
TEXT = st.text(max_size=40) | st.sampled_from(NAMES)


def is_picture(path) -> bool:
    return cv2.imread(str(path)).std() > 5


@pytest.mark.filterwarnings("error:Glyph")  # a letter that the font has no shape for
def test_charts_take_every_name(tmp_path):
    scores = {"final": dict.fromkeys(NAMES, 0.5), "meta": dict.fromkeys(NAMES, 0.4)}
    for title in NAMES:
        assert is_picture(class_iou_chart(tmp_path / "few.png", {"final": {title: 0.5}}))
    assert is_picture(class_iou_chart(tmp_path / "classes.png", scores, NAMES[0]))
    leakage = {name: dict.fromkeys(NAMES, 1) for name in NAMES}
    assert is_picture(leakage_chart(tmp_path / "leakage.png", leakage, NAMES[1]))
    runs = {f"{name}\n{number}": [0.5, 0.6] for number, name in enumerate(NAMES)}
    assert is_picture(run_spread_chart(tmp_path / "runs.png", runs, NAMES[3]))


@given(TEXT)
@settings(max_examples=60, deadline=None)
def test_a_chart_shows_what_the_name_says(name):
    from matplotlib.ft2font import FT2Font
    from matplotlib.text import Text

    shown = Text(text=label(name, 10**6)).get_text()
    words, formula = Text()._preprocess_math(shown)
    assert formula is False and words == plain(name, 10**6)
    drawable = FT2Font(font(16).path).get_charmap()
    assert words.isprintable() and all(ord(c) in drawable for c in words)


@given(TEXT, TEXT)
@settings(max_examples=60, deadline=None)
def test_panels_take_every_name(name, title):
    picture = np.zeros((4, 6, 3), np.uint8)
    assert grid([[(picture, name)]], title, 60).shape[1:] == (72, 3)


def test_names_that_the_font_cannot_write_stay_apart():
    assert plain("梨") == "\\u68a8" != plain("桃")
    assert plain("a\u0350") == "a\\u0350" and plain("\U000e0100") == "\\U000e0100"
    assert plain("Çılbır Ωμέγα груша ±") == "Çılbır Ωμέγα груша ±"
    assert len(plain("x" * 100, 24)) == 24


@given(name=TEXT)
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_name_names_a_file(name, tmp_path):
    kept = file_name(name)
    assert "/" not in kept and "\0" not in kept and kept.isprintable()
    path = tmp_path / f"best_1_{kept}.png"
    path.write_bytes(b"x")
    assert path.parent == tmp_path and path.is_file()
    path.unlink()
    if name.isascii() and name.isalnum() and len(name) <= 80:
        assert kept == name


def test_a_prediction_of_every_class_name_is_written(tmp_path):
    names = NAMES
    maps = np.zeros((1 + len(names), 4, 5), np.float32)
    result = Prediction(
        np.zeros((4, 5), np.uint8), maps, names, {}, {name: [maps[0]] for name in names}
    )
    files = write_results(tmp_path, "query", np.zeros((4, 5, 3), np.uint8), result)
    assert len(set(files)) == len(files) == 2 + 2 * len(names)
    assert all(path.is_file() and tmp_path in path.parents for path in files)


@given(st.lists(st.lists(TEXT, min_size=2, max_size=2), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_a_table_keeps_its_lines(rows):
    assert len(text_grid(rows).splitlines()) == len(rows)
    markdown = markdown_table([["a", "b"], *rows], left=(0,)).splitlines()
    assert len(markdown) == len(rows) + 2
    assert {line.replace("\\|", "").count("|") for line in markdown} == {3}


@given(content=st.dictionaries(TEXT, TEXT, max_size=3))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_json_keeps_every_name(tmp_path, content):
    write_json(tmp_path / "x.json", content)
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == content


def test_tensorboard_takes_every_name(tmp_path):
    log = RunLog(tmp_path, quiet=False)
    for name in NAMES:
        log.picture(f"validation/1 {name}", np.zeros((4, 6, 3), np.uint8), 1)
    run(lambda: log.say("\n".join(NAMES)))
    log.close()
    assert "\\udcff not UTF-8" in (tmp_path / "train.log").read_text(encoding="utf-8")


# ------------------------------------------------------------------------ screens


def test_what_the_screen_cannot_write_is_its_escape(monkeypatch):
    pipe = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(pipe, encoding="ascii"))
    run(lambda: print("69.4 ± 0.3 of 梨 \udcff"))
    sys.stdout.flush()
    assert pipe.getvalue() == b"69.4 \\xb1 0.3 of \\u68a8 \\udcff\n"


C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("extra", [{"PYTHONIOENCODING": "ascii"}, C_LOCALE], ids=["ascii", "C"])
def test_a_command_in_a_terminal_without_utf8(tmp_path, extra):
    """A folder and a result whose names the screen cannot write, in a table on that screen."""
    root = tmp_path / "результаты ±"
    root.mkdir()
    result = (
        '{"dataset": "梨", "arch": "HDMNet", "backbone": "resnet50", "split": 0, "shot": 1,'
        ' "episodes": 9, "runs": [{}], "mean": {"miou": 0.5}}'
    )
    (root / "result.json").write_text(result, encoding="utf-8")
    command = [sys.executable, "-m", "util.report", "--exp", str(root), "--output", str(root)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **extra}, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"| HDMNet |" in done.stdout and b"\\u68a8, 1 shot" in done.stdout
    assert "梨" in (root / "report.md").read_text(encoding="utf-8")
    assert is_picture(root / "report.png")


# ------------------------------------------------------------------------ shapes of pictures


@pytest.mark.parametrize("width, height", [(1, 2000), (4000, 2), (1, 1), (30000, 1), (70000, 1)])
def test_pictures_of_every_shape(tmp_path, width, height):
    image = np.zeros((height, width, 3), np.uint8)
    mask = np.ones((height, width), np.uint8)
    maps = np.ones((2, height, width), np.float32)
    result = Prediction(mask, maps, ("thing",), {}, {"thing": [maps[0]]})
    files = write_results(tmp_path, "query", image, result)
    assert len(files) == 4
    assert Image.open(files[0]).size == (width, height)
    drawn = panel([image], [mask], image, mask, mask, None, [maps[0]])
    assert drawn.shape[1] == 3 * 246 + 6
    assert max(fit_canvas(image).shape[:2]) <= CANVAS
