"""Result files side by side: how groups are called, what is said and drawn of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from util.report.__main__ import main
from util.report.spread import run_groups, spread_table
from util.runtime.errors import FewShotError, run


def write_result(path: Path, scores: list[float], **changes) -> Path:
    content = {
        "dataset": "pascal", "arch": "HDMNet", "backbone": "resnet50", "split": 0, "shot": 1,
        "episodes": 1000, "mean": {}, **changes,
        "runs": [{"seed": i, "miou": score, "miou_meta": None} for i, score in enumerate(scores)],
    }  # fmt: skip
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def scores() -> list[list[float]]:
    rng = np.random.default_rng(0)
    return [list(rng.normal(0.69, deviation, 10)) for deviation in (0.006, 0.002)]


@pytest.fixture
def files(tmp_path, scores) -> list[Path]:
    return [
        write_result(tmp_path / "1k.json", scores[0]),
        write_result(tmp_path / "10k.json", scores[1], episodes=10_000),
    ]


def test_groups_are_the_numbers_of_episodes(files, scores):
    title, groups = run_groups(files)
    assert title == "HDMNet, resnet50, pascal, split 0, 1 shot"
    assert groups == dict(zip(["1,000 episodes", "10,000 episodes"], scores, strict=True))
    for line, values in zip(spread_table(groups).splitlines()[1:], scores, strict=True):
        summary = np.mean(values), np.std(values, ddof=1), min(values), max(values)
        assert line.split()[2:] == ["10", *(f"{100 * value:.2f}" for value in summary)]


def test_groups_say_in_what_they_differ(files, tmp_path):
    other = write_result(tmp_path / "other.json", [0.6], arch="HSNet", split=2)
    again = write_result(tmp_path / "again.json", [0.7])
    title, groups = run_groups([*files, other, again])
    assert title == "resnet50, pascal, 1 shot"
    assert list(groups) == [
        "1,000 episodes\nHDMNet\nsplit 0",
        "10,000 episodes\nHDMNet\nsplit 0",
        "1,000 episodes\nHSNet\nsplit 2",
        f"1,000 episodes\nHDMNet\nsplit 0\n{again}",
    ]
    assert spread_table(groups).splitlines()[-1].split()[-4:] == ["70.00", "-", "70.00", "70.00"]


def test_the_command_draws_one_group_a_file(files, tmp_path, monkeypatch, capsys):
    output = tmp_path / "new" / "spread.png"
    words = ["report", "spread", *map(str, files), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", words)
    run(main)
    shown = capsys.readouterr().out
    assert "10,000 episodes" in shown and str(output) in shown
    assert cv2.imread(str(output)).std() > 5

    monkeypatch.setattr(sys, "argv", [*words, "--metric", "miou_meta"])
    with pytest.raises(SystemExit) as stop:
        run(main)
    assert stop.value.code == 2
    sentence = f"error: {files[0]} does not say miou_meta for every run\n"
    assert capsys.readouterr().err == sentence


def test_a_file_without_runs_is_named(tmp_path):
    (tmp_path / "old.json").write_text('{"mean": {"miou": 0.5}}')
    with pytest.raises(FewShotError, match="old.json does not say miou"):
        run_groups([tmp_path / "old.json"])
