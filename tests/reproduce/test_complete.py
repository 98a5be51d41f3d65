"""What counts as complete: of exactly these settings, this training, these pictures."""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.reproduce.small import make_small, write_result
from util.data.sources import names_digest, read_list
from util.evaluate.result import settings
from util.report.__main__ import main
from util.reproduce.cells import Cell, cells_of
from util.reproduce.complete import costs_of, drawn, result_of, trained
from util.reproduce.tables import COSTS, table_of
from util.runtime.errors import FewShotError
from util.runtime.files import BEST, LAST, SUPERSEDED, write_json
from util.weights.training import weights_in


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_small(tmp_path)


def cell_in(folder: Path, row: str = "baseline", *more: tuple[str, str]) -> Cell:
    table = replace(table_of("hdmnet-table3"), folds=(0,))
    return next(c for c in cells_of(table, str(folder / "tiny"), more) if c.row.name == row)


def checkpoint(cell: Cell, complete: bool = True, **changes) -> Path:
    """What of a last checkpoint counts here."""
    cfg, path = cell.train.cfg, cell.folder / LAST
    state = {"config": cfg.to_dict(), "effective_batch": cfg.batch_size, "complete": complete}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**state, **changes}, path)
    return path


def of_training(cell: Cell, **changes) -> dict:
    """The same in a result."""
    cfg = cell.train.cfg
    content = {"config": cfg.to_dict(), "batch": cfg.batch_size, "data": None, "start": None}
    return {**content, "complete": True, **changes}


def configured(cell: Cell, **keys) -> dict:
    """The training's configuration with other values."""
    return cell.train.cfg.replace(**keys).to_dict()


def test_a_result_is_of_its_training_where_the_checkpoints_are_gone(folder):
    cell = cell_in(folder)
    assert result_of(cell) is None
    write_result(cell, 0.5)
    assert result_of(cell)["mean"]["miou"] == 0.5
    damaged = [{}, {"config": {}}, of_training(cell, complete="yes"), of_training(cell, config=1)]
    for training in (None, "x", of_training(cell, complete=False), *damaged):
        write_result(cell, 0.5, training=training)
        assert result_of(cell) is None
    write_result(cell, 0.5, training=of_training(cell, config=configured(cell, epochs=50)))
    with pytest.raises(FewShotError, match=r"epochs 50 \(here \d+\): move that folder away"):
        result_of(cell)


def test_a_result_is_of_the_training_that_lies_beside_it(folder, capsys):
    """Its last checkpoint says more than the result: it may be going on, or be another."""
    cell = cell_in(folder)
    best = cell.folder / BEST
    best.parent.mkdir(parents=True)
    torch.save({"model": {"a": torch.zeros(2)}}, best)
    write_result(cell, 0.4321, weights=weights_in(best))
    last = checkpoint(cell, complete=False)
    assert result_of(cell) is None and not trained(cell.train.cfg, last)
    checkpoint(cell)
    assert result_of(cell) and trained(cell.train.cfg, last)
    checkpoint(cell, config=configured(cell, base_lr=0.5))
    for look in (lambda: result_of(cell), lambda: trained(cell.train.cfg, last)):
        with pytest.raises(FewShotError, match="holds a training with base_lr 0.5"):
            look()
    main(["table", "hdmnet-table3", "--data", str(folder / "tiny"), "--folds", "0"])
    said = capsys.readouterr().out
    assert "Not taken: " in said and "holds a training with base_lr 0.5" in said
    assert "43.21" not in said
    last.with_name(SUPERSEDED).touch()
    assert result_of(cell) and not trained(cell.train.cfg, last)
    last.with_name(SUPERSEDED).unlink()
    best.unlink()  # whose result it is cannot be seen any more
    assert result_of(cell)
    write_result(cell, 0.4321, training=of_training(cell, complete=False))
    assert result_of(cell) is None


def test_a_training_is_of_the_base_learner_that_lies_there(folder):
    cell = cell_in(folder, "+ ensemble")
    base = Path(cell.train.cfg.base_weight)
    base.parent.mkdir(parents=True)
    torch.save({"model": {"a": torch.zeros(2)}}, base)
    last = checkpoint(cell, start=weights_in(base))
    assert trained(cell.train.cfg, last)
    torch.save({"model": {"a": torch.ones(2)}}, base)
    with pytest.raises(FewShotError, match="another .*best.pth than lies there"):
        trained(cell.train.cfg, last)
    base.unlink()
    assert trained(cell.train.cfg, last)


def test_a_result_is_of_these_weights(folder):
    cell = cell_in(folder)
    cell.folder.mkdir(parents=True)
    best = cell.folder / BEST
    torch.save({"model": {"a": torch.zeros(2)}}, best)
    write_result(cell, 0.5)
    assert result_of(cell) is None
    write_result(cell, 0.5, weights=weights_in(best))
    assert result_of(cell)
    torch.save({"model": {"a": torch.ones(2)}}, best)
    assert result_of(cell) is None
    best.unlink()
    assert result_of(cell)
    write_result(cell, 0.5, weight=str(cell.folder / "epoch_1.pth"))
    assert result_of(cell) is None


def test_pictures_are_compared_where_they_are_listed_here(folder):
    cell = cell_in(folder)
    write_result(cell, 0.5, data="of another list")
    assert result_of(cell) is None
    write_result(cell, 0.5, training=of_training(cell, data="of another list"))
    with pytest.raises(FewShotError, match="other pictures than those of"):
        result_of(cell)
    write_result(cell, 0.5, data="of another list", training=of_training(cell, data="of another"))
    gone = (("val_list", "gone.txt"), ("train_list", "gone.txt"))
    assert result_of(cell_in(folder, "baseline", *gone))
    assert result_of(cell_in(folder, "baseline", ("data_root", "elsewhere")))


@pytest.mark.parametrize("absolute", [False, True])
def test_a_list_is_the_same_however_its_root_is_written(tmp_path, monkeypatch, absolute):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "data"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to(root)
    above = f"{root}/" if absolute else ""
    (tmp_path / "list.txt").write_text(f"{above}sub/a.jpg {above}sub/a.png\n")
    spellings = ["data", "./data", "data/", "link", "data/sub/..", str(root), f"{root}/sub/.."]
    found = {names_digest(read_list("list.txt", given), given) for given in spellings}
    assert len(found) == 1
    (tmp_path / "list.txt").write_text("sub/b.jpg sub/a.png\n")
    assert names_digest(read_list("list.txt", "data"), "data") not in found


def test_results_move_with_their_folder(folder):
    """A base learner is the same one in the same place below ``exp_root``."""
    cell = cell_in(folder, "+ ensemble")
    assert cell.train.cfg.base_weight
    checkpoint(cell)
    write_result(cell, 0.5)
    shutil.move(folder / "exp", folder / "elsewhere")
    for root in ("elsewhere", str(folder / "elsewhere"), "./elsewhere"):
        moved = cell_in(folder, "+ ensemble", ("exp_root", root))
        assert result_of(moved) and trained(moved.train.cfg, moved.folder / LAST)
    checkpoint(moved, config=configured(moved, base_weight=str(folder / "other/best.pth")))
    with pytest.raises(FewShotError, match="base_weight"):
        trained(moved.train.cfg, moved.folder / LAST)


@pytest.mark.parametrize(
    "change",
    [
        {"runs": None}, {"runs": [1]}, {"runs": []}, {"mean": {"miou": "x"}},
        {"mean": {"miou": math.nan}}, {"mean": {"miou": 50}}, {"mean": {"miou": True}},
        {"mean": {"miou": 0.5, "fb_iou": math.nan}}, {"mean": []}, {"weight": None},
        {"settings": None}, {"episodes": "5"}, {"swapped_supports": True},
    ],
)  # fmt: skip
def test_a_damaged_result_is_none(folder, change):
    cell = cell_in(folder)
    write_result(cell, 0.5, **change)
    assert result_of(cell) is None


def test_costs_are_of_this_network_and_numbers(folder):
    cell = cell_in(folder)
    cfg = cell.train.cfg
    right = {"settings": settings(cfg), "compute": cfg.compute, **dict.fromkeys(COSTS, 1.5)}
    for content in ({}, [], {**right, "ms": True}, {**right, "gflop": math.nan},
                    {**right, "ms": None}, {**right, "compute": "textbook"},
                    {**right, "settings": {**settings(cfg), "val_size": 9999}}):  # fmt: skip
        write_json(cell.cost, content)
        assert costs_of(cell) is None
    write_json(cell.cost, right)
    assert costs_of(cell) == json.loads(cell.cost.read_text())
    write_json(cell.cost, {**right, "gb": None})  # where memory cannot be measured
    assert costs_of(cell)
    cell.cost.write_text("{")
    assert costs_of(cell) is None


def test_a_picture_is_as_new_as_what_it_shows(tmp_path):
    picture, need = tmp_path / "figure.png", tmp_path / "result.json"
    assert not drawn(picture, (need,))
    picture.touch()
    assert not drawn(picture, ())
    picture.write_bytes(b"PNG")
    assert drawn(picture, (need,))
    need.touch()
    os.utime(picture, ns=(0, need.stat().st_mtime_ns - 1))
    assert not drawn(picture, (need,))
    os.utime(picture, ns=(0, need.stat().st_mtime_ns))
    assert drawn(picture, (need,))
