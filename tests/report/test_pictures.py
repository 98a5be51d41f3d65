"""Sheets of episodes with several checkpoints, and learning curves out of logs."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest
import torch

from tests.evaluate.test_evaluate import make_data
from tests.models import build
from util.lists import main as lists
from util.report.__main__ import main
from util.report.curves import curves_of
from util.reproduce.cells import cells_of
from util.reproduce.steps import steps_of
from util.reproduce.tables import table_of
from util.runtime.errors import FewShotError


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Pictures, a configuration, and weights of two models."""
    folder = tmp_path_factory.mktemp("sheet")
    make_data(folder)
    for seed in (0, 1):
        torch.save({"model": build(seed, num_base=3).state_dict()}, folder / f"{seed}.pth")
    return folder


def sheet(data: Path, output: Path, *more: str) -> None:
    weights = [str(data / "0.pth"), str(data / "1.pth")]
    main(["sheet", *weights, "--config", str(data / "tiny.yaml"), "--output", str(output), *more])


def test_episodes_of_two_checkpoints_side_by_side(data, tmp_path):
    sheet(data, tmp_path / "a.png", "--episodes", "2,5", "--names", "without", "with")
    picture = cv2.imread(str(tmp_path / "a.png"))
    assert picture.shape[1] == 6 * 206 + 6, "support, query, prediction, three stages"
    sheet(data, tmp_path / "one.png", "--episodes", "2")
    one = cv2.imread(str(tmp_path / "one.png"))
    assert 1.7 < (picture.shape[0] - 30) / (one.shape[0] - 30) < 2.3, "two rows an episode"
    sheet(data, tmp_path / "b.png", "--random", "1", "--seed", "3")
    sheet(data, tmp_path / "c.png", "--random", "1", "--seed", "3")
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "c.png").read_bytes()


def test_mistakes_of_a_sheet(data, tmp_path):
    with pytest.raises(FewShotError, match="2 checkpoints and 1 names"):
        sheet(data, tmp_path / "a.png", "--names", "one")
    with pytest.raises(FewShotError, match="--random must be from 1 to 24"):
        sheet(data, tmp_path / "a.png", "--random", "25")
    for number in ("-1", "24"):
        with pytest.raises(FewShotError, match=f"--episodes must be from 0 to 23, not {number}"):
            sheet(data, tmp_path / "a.png", "--episodes", number)


LOG = """\
2026-01-01 10:00:00 HDMNet resnet18, tiny split 0
2026-01-01 10:00:01 epoch 1 iteration 1/4: main 0.9000, meta 0.8000
2026-01-01 10:00:01 epoch 1 iteration 2/4: main 0.7000, meta 0.8000
2026-01-01 10:00:02 epoch 1 validation: miou 0.2000, fb_iou 0.5000 (best so far)
2026-01-01 10:00:03 epoch 2 iteration 3/4: main 0.6000
2026-01-01 10:10:00 resumed at epoch 2, iteration 2
2026-01-01 10:10:03 epoch 2 iteration 3/4: main 0.5000
2026-01-01 10:10:04 epoch 2 iteration 4/4: main 0.3000
2026-01-01 10:10:05 epoch 2 validation: miou 0.3000, fb_iou 0.5000
"""


def test_curves_are_those_of_the_log(tmp_path):
    """What an interrupted run told of an iteration is what the resumed one says of it."""
    (tmp_path / "train.log").write_text(LOG)
    losses, scores = curves_of(tmp_path)
    assert losses == {1: pytest.approx(0.8), 2: pytest.approx(0.4)}
    assert scores == {1: 0.2, 2: 0.3}
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(FewShotError, match="train.log cannot be read"):
        main(["curves", str(tmp_path), str(other), "--output", str(tmp_path / "c.png")])
    (other / "train.log").write_text("nothing\n")
    with pytest.raises(FewShotError, match="tells of no iteration"):
        main(["curves", str(tmp_path), str(other), "--output", str(tmp_path / "c.png")])
    (other / "train.log").write_text(LOG)
    names = ["--names", "frozen", "fine-tuned"]
    main(["curves", str(tmp_path), str(other), *names, "--output", str(tmp_path / "c.png")])
    assert cv2.imread(str(tmp_path / "c.png")).std() > 5


def test_statistics_of_two_data_sets_side_by_side(data, tmp_path, capsys):
    other = tmp_path / "other.yaml"
    other.write_text((data / "tiny.yaml").read_text().replace("data_set: tiny", "data_set: same"))
    picture = tmp_path / "chart.png"
    lists(["--config", str(data / "tiny.yaml"), "--beside", str(other), "--chart", str(picture),
           "--json", str(tmp_path / "report.json")])  # fmt: skip
    drawn = cv2.imread(str(picture))
    assert drawn.std() > 5 and "same:" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["beside"] == {"same": report["stats"]}
    lists(["--config", str(data / "tiny.yaml"), "--chart", str(picture)])
    assert cv2.imread(str(picture)).shape[0] < drawn.shape[0]
    with pytest.raises(SystemExit):
        lists(["--config", str(data / "tiny.yaml"), "--beside", str(other)])


@pytest.mark.parametrize("name", ["hdmnet-figure2", "hdmnet-figure4", "hsnet-curves"])
def test_the_command_of_a_figure_is_one(name, tmp_path, monkeypatch):
    """It gets as far as the files that are not there."""
    table = table_of(name)
    monkeypatch.chdir(tmp_path)
    step = list(steps_of(table, cells_of(table), Path("figure.png")).values())[-1]
    assert step.kind == "draw" and step.command[:2] == ("-m", "util.report")
    with pytest.raises(FewShotError, match="exp/"):
        main(list(step.command[2:]))
