"""Both training stages on a few tiny pictures: what a run writes, repeats and goes on from."""

from __future__ import annotations

import json
import math
import re
import shutil
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from model import build_model
from model.fewshot import Loss
from model.fewshot import total as objective_of_whole
from tests.equality import bits, same_weights
from tests.training_case import make_data, train
from train import PICTURES, EpisodicStage
from train_base import BaseStage
from util.config import load_config
from util.data.loader import StepPlan, load_steps
from util.runtime.errors import FewShotError, Interrupted, NonFiniteLoss
from util.runtime.rng import epoch_order, mix, per_sample_dropout
from util.runtime.signals import StopRequest
from util.train import objective
from util.train.checkpoints import read_state
from util.train.loop import fit
from util.train.progress import Progress

pytestmark = pytest.mark.numeric

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Path:
    """Data, configurations and a trained base learner."""
    folder = tmp_path_factory.mktemp("case") / "tiny"
    make_data(folder, ignored=True)
    train(configure(folder, "stage1"))
    return folder


def configure(folder: Path, stage: str, **changes):
    options = {"max_iterations": 5, **changes}
    return load_config(folder / f"{stage}.yaml", [x for pair in options.items() for x in pair])


def run(folder: Path, stage: str, name: str, resume: str | None = None, stop=None, **changes):
    """Train in this process; the final state."""
    cfg = configure(folder, stage, name=name, **changes)
    train(cfg, resume, stop)
    return read_state(cfg.exp_dir() / "last.pth")


class StopAt:
    """A signal that comes during the given step of this process."""

    name = "SIGTERM"

    def __init__(self, step: int) -> None:
        self.left = step

    @property
    def asked(self) -> bool:
        self.left -= 1
        return self.left == 0


def same_run(a: dict, b: dict) -> bool:
    """Weights, optimiser and position equal to the last bit."""
    keys = ("model", "optimizer", "epoch", "iteration", "best", "best_epoch", "stale", "step")
    return all(bits(a[key], b[key]) for key in keys)


def events(folder: Path) -> dict[str, list[int]]:
    """Tag -> steps of all TensorBoard files of a run."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, list[int]] = {}
    for path in sorted((folder / "tensorboard").iterdir()):
        data, place = path.read_bytes(), 0
        while place < len(data):
            (size,) = struct.unpack_from("<Q", data, place)
            event = Event.FromString(data[place + 12 : place + 12 + size])
            place += size + 16
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(event.step)
    return found


# ------------------------------------------------------------------------ what a run leaves


def test_a_validation_episode_that_cannot_be_drawn_ends_no_training(case, monkeypatch):
    def vanishes(*_, **__):
        raise FewShotError("the object vanishes at the network's input size")

    monkeypatch.setattr("train.episode_panel", vanishes)
    cfg = configure(case, "stage2", name="undrawn", max_iterations=8)
    train(cfg)
    log = (cfg.exp_dir() / "train.log").read_text(encoding="utf-8")
    assert "no picture of validation episode 1: the object vanishes" in log and "done: 8" in log


def test_a_run_leaves_checkpoints_log_versions_and_events(case):
    cfg = configure(case, "stage2", name="whole", max_iterations=16, save_freq=1)
    train(cfg)
    names = {p.name for p in cfg.exp_dir().iterdir()}
    assert {"last.pth", "best.pth", "epoch_1.pth", "epoch_2.pth", "train.log"} <= names
    record = json.loads((cfg.exp_dir() / "run.json").read_text())
    assert record["config"]["TRAIN"]["max_iterations"] == 16
    assert record["versions"]["torch"] == torch.__version__ and record["versions"]["code"]
    assert "effective batch 2 = 2 x 1 accumulated x 1 processes" in (
        cfg.exp_dir() / "train.log"
    ).read_text(encoding="utf-8")
    tags = events(cfg.exp_dir())
    for name in ("main", "meta", "distill", "base"):
        assert tags[f"train/{name}"] == list(range(2, 17, 2))
    # the middle of the second epoch counts as well (SubEpoch_val)
    for name in ("miou", "fb_iou", "miou_meta", "fb_iou_meta", "miou_base"):
        assert tags[f"val/{name}"] == [8, 12, 16]
    assert {"lr/transformer", "lr/reduction"} <= tags.keys()
    assert sum(tag.startswith("validation/") for tag in tags) == PICTURES


def test_stage_one_scores_base_classes_and_stage_two_starts_from_its_best(case):
    folder = configure(case, "stage1").exp_dir()
    assert events(folder)["val/miou_base"] == [4, 5]
    base = read_state(folder / "best.pth")["model"]
    model = run(case, "stage2", "start", max_iterations=1)["model"]
    frozen = [name for name in base if name in model]
    assert len(frozen) == len(base)
    assert all(torch.equal(base[name], model[name]) for name in frozen)


def test_everything_learnable_learns_and_the_frozen_part_stays(case):
    before = run(case, "stage2", "before", max_iterations=1, power=0)["model"]
    after = run(case, "stage2", "after", max_iterations=3, power=0)["model"]
    model = build_model(configure(case, "stage2"))
    learned = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n in before if not torch.equal(before[n], after[n])} == learned


def test_every_learnable_parameter_gets_a_gradient(case):
    """DDP waits for each of them: it runs without the search for unused parameters."""
    for options in ({}, {"shot": 2}, {"ensemble": False}, {"distill": False}):
        cfg = configure(case, "stage2", **options)
        stage = EpisodicStage(cfg, CPU)
        model = stage.model.train()
        (batch,) = next(load_steps(stage.dataset, StepPlan(4, 2, 1, 1, 0, 1), cfg, 0, 0, 1))
        objective_of_whole(stage(batch)).backward()
        assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


# ------------------------------------------------------------------------ repeat and resume


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_same_seed_same_weights_whatever_the_workers_and_validation(case, stage):
    first = run(case, stage, "again")
    assert same_run(first, run(case, stage, "again", workers=2))
    unwatched = run(case, stage, "again", evaluate=False)
    assert bits(first["model"], unwatched["model"])
    other = run(case, stage, "again", manual_seed=5)
    assert not bits(first["model"], other["model"])


@pytest.fixture
def validations_go_on(monkeypatch):
    """So that the steps alone count for ``StopAt``."""
    for stage in (BaseStage, EpisodicStage):

        def validate(self, epoch, log, heed, validate=stage.validate):
            return validate(self, epoch, log, lambda: None)

        monkeypatch.setattr(stage, "validate", validate)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_interrupted_and_resumed_equals_undisturbed(case, stage, validations_go_on):
    # epochs of two steps: 1 is inside the first epoch, 4 = 1 + 3 ends the second, 5 ends the run
    options = {"batch_size": 4, "save_every": 0, "evaluate": stage == "stage1"}
    if stage == "stage2":
        options |= {"batch_size": 2, "max_iterations": 12, "evaluate": True, "episodes": 2}
    whole = run(case, stage, "undisturbed", **options)
    steps = [1, 3, 1] if stage == "stage1" else [1, 7, 4]  # 1; 4 or 8: an epoch's end; the end
    resume = None
    for number, step in enumerate(steps):
        at = sum(steps[: number + 1])
        with pytest.raises(Interrupted, match=f"SIGTERM at iteration {at};.*--resume auto"):
            run(case, stage, "resumed", resume=resume, stop=StopAt(step), **options)
        resume = "auto"
    assert same_run(whole, run(case, stage, "resumed", resume="auto", **options))
    # a finished run has nothing to add
    assert same_run(whole, run(case, stage, "resumed", resume="auto", **options))


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_stop_during_validation_ends_it_at_once_and_loses_nothing(case, stage):
    """Whole validations may take longer than a batch system waits before it kills."""
    options = {"batch_size": 4, "max_iterations": 99, "episodes": 3}
    whole = run(case, stage, "unstopped", **options)
    steps = whole["iteration"] // whole["epoch"]
    for resume, left in ((None, steps + 2), ("auto", 2)):
        with pytest.raises(Interrupted, match="SIGTERM in the validation of epoch 1; saved"):
            run(case, stage, "stopped", resume=resume, stop=StopAt(left), **options)
        state = read_state(configure(case, stage, name="stopped").exp_dir() / "last.pth")
        assert (state["iteration"], state["epoch"], state["complete"]) == (steps, 0, False)
    assert same_run(whole, run(case, stage, "stopped", resume="auto", **options))


def test_accumulated_steps_equal_the_joint_batch(case):
    """Half of the masks ignore a third of their pixels: a mean of means would differ.

    With SGD: AdamW turns the rounding noise of gradients that are zero into whole steps.
    """
    options = {"optimizer": "sgd", "max_iterations": 3, "evaluate": False}
    joint = run(case, "stage2", "joint", batch_size=4, **options)["model"]
    parts = run(case, "stage2", "parts", batch_size=1, accumulate=4, **options)["model"]
    assert same_weights(parts, joint, 1e-5)


def test_a_resumed_run_must_be_the_same_run(case):
    run(case, "stage2", "other", max_iterations=2)
    for changes, words in (
        ({"batch_size": 4}, "trained with 2 items a step, this run has 4"),
        ({"manual_seed": 9}, "trained with manual_seed 321, this run has 9"),
        ({"stages": 3}, "trained with stages 2, this run has 3"),
    ):
        with pytest.raises(FewShotError, match=words):
            run(case, "stage2", "other", resume="auto", **changes)


def test_a_run_killed_between_the_files_of_its_last_save_ends_when_resumed(case):
    """``best`` is there, ``last`` is of the epoch before: nothing is left to do but to say so."""
    options = {"epochs": 2, "max_iterations": 99, "save_freq": 1, "evaluate": False}
    whole = run(case, "stage2", "between", **options)
    folder = configure(case, "stage2", name="between", **options).exp_dir()
    shutil.copy(folder / "epoch_1.pth", folder / "last.pth")
    assert not read_state(folder / "last.pth")["complete"] and whole["complete"]
    resumed = run(case, "stage2", "between", resume="auto", **options)
    assert resumed["complete"] and same_run(whole, resumed)
    ended = (folder / "last.pth").stat().st_mtime_ns
    run(case, "stage2", "between", resume="auto", **options)
    assert (folder / "last.pth").stat().st_mtime_ns == ended


def test_a_run_goes_on_with_the_pictures_that_it_began_with(case, tmp_path):
    options = {"max_iterations": 1, "evaluate": False}
    run(case, "stage2", "listed", **options)
    lines = Path(configure(case, "stage2").train_list).read_text().splitlines()
    (tmp_path / "list.txt").write_text("\n".join(lines[::-1]))
    with pytest.raises(FewShotError, match="trained on other pictures than those of .*list.txt"):
        run(case, "stage2", "listed", "auto", **options, train_list=tmp_path / "list.txt")


def test_resume_auto_in_an_empty_folder_starts_and_a_fresh_start_keeps_old_results(case):
    first = run(case, "stage2", "fresh", resume="auto", max_iterations=1)
    folder = configure(case, "stage2", name="fresh").exp_dir()
    run(case, "stage2", "fresh", max_iterations=2)
    assert same_run(first, read_state(folder / "previous" / "last.pth"))


def test_early_stop_counts_epochs_without_improvement(case):
    options = {"max_iterations": 99, "epochs": 9, "batch_size": 16, "base_lr": 1e-12}
    state = run(case, "stage2", "early", stop_interval=2, **options)
    assert (state["epoch"], state["best_epoch"], state["stale"]) == (3, 0, 2)


def test_a_loss_that_is_not_finite_stops_before_the_weights_move(case, monkeypatch):
    run(case, "stage2", "nan", max_iterations=2, evaluate=False)
    folder = configure(case, "stage2", name="nan").exp_dir()
    before = (folder / "last.pth").read_bytes()
    losses = EpisodicStage.forward

    def poisoned(self, batch):
        terms = losses(self, batch)
        return {**terms, "main": terms["main"]._replace(value=terms["main"].value * math.nan)}

    monkeypatch.setattr(EpisodicStage, "forward", poisoned)
    words = r"iteration 3 is not finite \(main nan.*files: .*\.jpg.*checkpoint: .*last\.pth"
    with pytest.raises(NonFiniteLoss, match=words) as caught:
        run(case, "stage2", "nan", resume="auto", max_iterations=4, evaluate=False)
    assert caught.value.status == 3
    assert (folder / "last.pth").read_bytes() == before


def test_a_gradient_that_is_not_finite_stops_before_the_weights_move(case, monkeypatch):
    """The loss is 0 more than it was, by a root whose slope at 0 is infinite."""
    run(case, "stage2", "slope", max_iterations=2, evaluate=False)
    folder = configure(case, "stage2", name="slope").exp_dir()
    before = (folder / "last.pth").read_bytes()
    losses = EpisodicStage.forward

    def poisoned(self, batch):
        terms = losses(self, batch)
        weight = next(p for p in self.parameters() if p.requires_grad)
        root = (0 * weight).abs().sqrt().sum()
        return {**terms, "main": terms["main"]._replace(value=terms["main"].value + root)}

    monkeypatch.setattr(EpisodicStage, "forward", poisoned)
    words = r"the gradient at iteration 3 is not finite \(main \d.*files: .*\.jpg.*last\.pth"
    with pytest.raises(NonFiniteLoss, match=words):
        run(case, "stage2", "slope", resume="auto", max_iterations=4, evaluate=False)
    assert (folder / "last.pth").read_bytes() == before


@pytest.mark.parametrize(
    "stage, kind, files", [("stage1", BaseStage, 1), ("stage2", EpisodicStage, 2)]
)
def test_every_micro_batch_behind_a_bad_loss_is_named_once(case, monkeypatch, stage, kind, files):
    """accumulate 2 of batch 2: four items; with 1 shot an episode is read from two pictures."""
    losses = kind.forward

    def poisoned(self, batch):
        terms = losses(self, batch).items()
        return {name: term._replace(value=term.value * math.nan) for name, term in terms}

    monkeypatch.setattr(kind, "forward", poisoned)
    with pytest.raises(NonFiniteLoss) as caught:
        run(case, stage, "nan2", max_iterations=1, batch_size=2, accumulate=2, evaluate=False)
    named = re.search(r"files: (.*); last good checkpoint", str(caught.value))[1].split(", ")
    assert len(named) == 4 * files
    if stage == "stage1":  # other items in each micro-batch; episodes may share pictures
        assert len(set(named)) == 4


def test_half_precision_trains(case):
    state = run(case, "stage2", "bf16", amp="bf16", max_iterations=2)
    assert all(t.isfinite().all() for t in state["model"].values() if t.is_floating_point())


def test_each_stage_names_the_script_for_the_other(case):
    with pytest.raises(FewShotError, match="arch PSPNet is trained with train_base.py"):
        fit(EpisodicStage, configure(case, "stage1"), CPU, None, StopRequest())
    with pytest.raises(FewShotError, match="arch HDMNet is not a base learner"):
        fit(BaseStage, configure(case, "stage2"), CPU, None, StopRequest())


# ------------------------------------------------------------------------ the parts


@pytest.mark.parametrize("split", [(1, 1, 4), (2, 1, 2), (1, 2, 2), (4, 1, 1), (1, 4, 1)])
def test_any_split_of_a_step_uses_the_same_items_in_the_same_places(split):
    batch, accumulate, processes = split
    order = epoch_order(11, 8, 3, 5).reshape(2, 4)
    seen = np.full((2, 4), -1)
    for rank in range(processes):
        plan = StepPlan(11, batch, accumulate, processes, rank, 3)
        assert (plan.steps, plan.effective_batch) == (2, 4)
        batches = plan.micro_batches(5, 0, 2)
        for i, items in enumerate(batches):
            step, micro = divmod(i, accumulate)
            seen[step, list(plan.places(micro))] = items
        assert all(map(np.array_equal, plan.micro_batches(5, 1, 2), batches[accumulate:]))
    assert np.array_equal(seen, order)


def test_an_epoch_is_a_permutation_and_a_short_one_repeats():
    assert sorted(epoch_order(10, 10, 1, 0)) == list(range(10))
    assert not np.array_equal(epoch_order(10, 10, 1, 0), epoch_order(10, 10, 1, 1))
    assert np.bincount(epoch_order(3, 8, 1, 0)).tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])
    assert StepPlan(3, 8, 1, 1, 0, 1).steps == 1


def test_dropout_depends_on_the_place_in_the_step_alone():
    model = nn.Sequential(nn.Dropout(0.5), nn.Dropout2d(0.5), nn.Sequential(nn.Dropout(0.2)))
    stream = per_sample_dropout(model)
    x = torch.ones(4, 6, 5, 5)

    def draw(places):
        stream.start(CPU, 1, 7, places)
        return model(x[: len(places)])

    whole = draw(range(4))
    assert torch.equal(torch.cat([draw(range(2)), draw(range(2, 4))]), whole)
    assert not torch.equal(whole[0], whole[1])
    assert torch.equal(model.eval()(x), x)


def test_dropout_keeps_mean_and_share():
    model = nn.Sequential(nn.Dropout(0.3))
    per_sample_dropout(model).start(CPU, 1, 1, range(2))
    y = model(torch.ones(2, 100, 100))
    assert abs((y == 0).float().mean() - 0.3) < 0.02 and abs(y.mean() - 1) < 0.02


def test_objective_of_parts_is_the_gradient_of_the_whole():
    torch.manual_seed(0)
    logits = torch.randn(4, 2, 6, 6, requires_grad=True)
    target = torch.randint(0, 2, (4, 6, 6))
    target[0], target[1, :3] = 255, 255  # one part without any valid pixel

    def losses(part):
        main = nn.functional.cross_entropy(
            logits[part], target[part], ignore_index=255, reduction="sum"
        ) / (target[part] != 255).sum().clamp(min=1)
        edges = (logits[part, 0].square() * (target[part] != 255)).sum()
        edges = edges / (target[part] != 255).sum().clamp(min=1)
        distill = logits[part].square().mean((1, 2, 3)).mean()
        return {
            "main": Loss(main),
            "edges": Loss(edges, 0.3),  # any name, any weight
            "distill": Loss(distill, 0.5, over="samples"),
        }

    joint = losses(slice(0, 4))
    (whole,) = torch.autograd.grad(objective_of_whole(joint), logits)
    shares = objective.pixel_shares([target[i : i + 1] for i in range(4)])
    assert sum(shares) == pytest.approx(1) and shares[0] == 0
    total = sum(objective.joint_objective(losses(slice(i, i + 1)), shares[i], 4) for i in range(4))
    (parts,) = torch.autograd.grad(total, logits)
    torch.testing.assert_close(parts, whole)
    told = [objective.joint_values(losses(slice(i, i + 1)), shares[i], 4) for i in range(4)]
    told = {name: sum(part[name] for part in told) for name in told[0]}
    expected = {name: loss.value.item() for name, loss in joint.items()}
    expected["total"] = objective_of_whole(joint).item()
    assert told == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("processes, parts", [(2, 2), (4, 1), (1, 4)])
def test_a_new_loss_is_right_on_any_number_of_processes(processes, parts, monkeypatch):
    """Four samples; DDP takes the mean over processes of what each of them sums over its parts."""
    torch.manual_seed(1)
    logits = torch.randn(4, 5, 7, requires_grad=True)
    masks = torch.randint(0, 2, (4, 5, 7))
    masks[0], masks[1, 2:] = 255, 255

    def losses(part):
        valid = (masks[part] != 255).double()
        contour = (logits[part].square() * valid).sum() / valid.sum().clamp(min=1)
        spread = logits[part].sin().mean()
        return {"contour": Loss(contour, 2.5), "spread": Loss(spread, over="samples")}

    (whole,) = torch.autograd.grad(objective_of_whole(losses(slice(0, 4))), logits)
    monkeypatch.setattr(objective.distributed, "world_size", lambda: processes)
    valid = torch.tensor(int((masks != 255).sum()))
    monkeypatch.setattr(objective.distributed, "reduce_counts", lambda _: valid)
    found, size = torch.zeros_like(logits), 4 // (processes * parts)
    for first in range(0, 4, size):
        part = slice(first, first + size)
        (share,) = objective.pixel_shares([masks[part]])
        loss = objective.joint_objective(losses(part), share, parts)
        found += torch.autograd.grad(loss, logits)[0] / processes
    torch.testing.assert_close(found, whole)


def test_improvement_and_staleness():
    at = Progress()
    assert at.improve(0.0) and not at.improve(0.0) and not at.improve(math.nan)
    at.epoch = 4
    assert at.stale() == 3 and at.improve(0.5) and at.best_epoch == 4


def test_seeds_are_spread():
    assert len({mix(seed, it, place) for seed in range(8) for it in range(8) for place in range(8)}) == 512  # fmt: skip  # noqa: E501


def test_pictures_show_the_classes_validated_on(tmp_path) -> None:
    """FSS-1000 validates on other classes than those that its figures are about."""
    generator = np.random.default_rng(0)
    for name in "abcde":
        (tmp_path / name).mkdir()
        for number in "123":
            image = generator.integers(0, 255, (41, 41, 3), dtype=np.uint8)
            mask = np.zeros((41, 41), np.uint8)
            mask[5:30, 8:35] = 255
            cv2.imwrite(str(tmp_path / name / f"{number}.jpg"), image)
            cv2.imwrite(str(tmp_path / name / f"{number}.png"), mask)
    config = tmp_path / "fss.yaml"
    config.write_text(
        f"{{data_set: fss, data_root: '{tmp_path}', min_pixels: 1, val_size: 64, train_h: 64, "
        "train_w: 64, arch: HSNet, backbone: resnet18, width: 8, pretrained: none, "
        f"exp_root: '{tmp_path}-exp'}}"
    )
    cfg = load_config(config)
    shown = []

    class Log:
        def picture(self, name: str, rgb: np.ndarray, step: int) -> None:
            assert rgb.ndim == 3 and step == 7
            shown.append(name)

    stage = EpisodicStage(cfg, CPU)
    stage.model.eval()
    stage.show(Log(), 7)
    (validated,) = cfg.fold.validation
    assert validated not in cfg.fold.novel
    assert shown == [f"validation/{i} {cfg.fold.names[validated]}" for i in (1, 2, 3)]
