"""The learned part alone: small, and bound to the frozen part that it was learned over."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model import build_model
from tests.training_case import ROOT, environment, make_data, train
from util.config import load_config
from util.demo import main as demo_main
from util.export import main as export_main
from util.lists import main as lists_main
from util.report.__main__ import main as report_main
from util.runtime.errors import FewShotError
from util.weights.checkpoint import load_weights, read_checkpoint
from util.weights.export import export, load_learned
from util.weights.load import load_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """The configuration of a trained model, and the two files."""
    folder = tmp_path_factory.mktemp("export") / "tiny"
    make_data(folder)
    one_step = ["max_iterations", 1, "evaluate", False]
    train(load_config(folder / "stage1.yaml", one_step))
    cfg = load_config(folder / "stage2.yaml", one_step)
    train(cfg)
    whole, part = cfg.exp_dir() / "best.pth", folder / "learned.pth"
    done = subprocess.run([sys.executable, "-m", "util.export", whole, part], cwd=ROOT,
                          env=environment(), capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{part}: " in done.stdout and "MB" in done.stdout
    return cfg, whole, part


def test_over_its_base_learner_it_gives_the_whole_model_back(case):
    cfg, whole, part = case
    expected, model = build_model(cfg), build_model(cfg)
    load_weights(expected, whole, complete=True)
    load_weights(model, cfg.base_weight)
    load_learned(model, part)
    state = model.state_dict()
    assert all(torch.equal(state[n], t) for n, t in expected.state_dict().items())
    # no optimiser and no frozen part
    learned = sum(t.numel() * t.element_size() for t in expected.learnable_state().values())
    assert part.stat().st_size < 1.1 * learned < whole.stat().st_size / 2


def test_evaluation_takes_the_learned_part(case):
    cfg, whole, part = case
    expected, found = load_model(cfg, whole).state_dict(), load_model(cfg, part).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_over_the_encoder_alone_in_half_precision(case, tmp_path):
    cfg, whole, _ = case
    part = tmp_path / "small.pth"
    arguments = [str(whole), str(part), "--over", "encoder", "--half"]
    done = subprocess.run([sys.executable, "-m", "util.export", *arguments], cwd=ROOT,
                          env=environment(), capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    nowhere = cfg.replace(base_weight=str(tmp_path / "none.pth"), pretrained=cfg.base_weight)
    found, expected = load_model(nowhere, part).state_dict(), load_model(cfg, whole).state_dict()
    for name, tensor in expected.items():
        exact = name.startswith("encoder.") or not tensor.is_floating_point()
        assert torch.allclose(found[name], tensor, rtol=0 if exact else 5e-4, atol=1e-7), name
        assert found[name].dtype == tensor.dtype
    with pytest.raises(FewShotError, match="another encoder"):
        load_model(nowhere.replace(pretrained="none"), part)


@pytest.mark.parametrize(
    "tensor", ["base_learner.conv.bias", "encoder.layer2.0.conv1.bn.running_var"]
)
def test_another_base_learner_is_refused_and_nothing_changes(case, tensor):
    cfg, _, part = case
    model = build_model(cfg)
    load_weights(model, cfg.base_weight)
    model.state_dict()[tensor].flatten()[0] += 1e-3
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(FewShotError, match=r"learned\.pth was learned over another.*base_weight"):
        load_learned(model, part)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_it_cannot_be_mistaken_for_a_weight_file(case):
    cfg, whole, part = case
    with pytest.raises(FewShotError, match="no state dict"):
        load_weights(build_model(cfg), part)
    with pytest.raises(FewShotError, match="is no export"):
        load_learned(build_model(cfg), whole)


@pytest.mark.parametrize("learned", [None, "best.pth", torch.zeros(3)], ids=["", "path", "tensor"])
def test_a_damaged_export_is_named(case, tmp_path, learned):
    cfg, _, part = case
    content = {k: v for k, v in read_checkpoint(part).items() if k != "learned"}
    if learned is not None:
        content["learned"] = learned
    torch.save(content, tmp_path / "damaged.pth")
    with pytest.raises(FewShotError, match=r"damaged\.pth is a damaged export: learned is missing"):
        load_model(cfg, tmp_path / "damaged.pth")


def test_a_number_that_is_none_is_said_with_its_file(case, tmp_path):
    cfg, _, part = case
    content = dict(read_checkpoint(part))
    name = next(n for n, t in content["learned"].items() if t.is_floating_point() and t.numel())
    content["learned"] = {**content["learned"], name: content["learned"][name] * float("nan")}
    torch.save(content, tmp_path / "nan.pth")
    with pytest.raises(FewShotError, match=r"nan\.pth"):
        load_model(cfg, tmp_path / "nan.pth")


def test_folders_that_are_missing_are_made(case, tmp_path):
    cfg, whole, part = case
    export(whole, tmp_path / "new" / "x.pth")
    state = read_checkpoint(tmp_path / "new" / "x.pth")["learned"]
    assert all(torch.equal(t, state[n]) for n, t in read_checkpoint(part)["learned"].items())
    lists_main(
        ["--config", str(whole.parents[6] / "stage2.yaml"), "--json", str(tmp_path / "a/b/r.json")]
    )
    assert json.loads((tmp_path / "a/b/r.json").read_text())["data_set"] == cfg.data_set


def test_no_writer_replaces_what_it_reads(case, tmp_path, monkeypatch):
    """However the file is called: an export, a result, a chart and a report would be its end."""
    cfg, whole, _ = case
    linked = tmp_path / "linked.pth"
    linked.symlink_to(whole)
    before = whole.read_bytes()
    config = whole.parents[6] / "stage2.yaml"
    base = cfg.base_weight
    result = tmp_path / "r.json"
    result.write_text("{}")
    calls = {
        export_main: ["util.export", whole, linked],
        demo_main: ["util.demo", "encoder", "--checkpoint", base, "--output", base],
        report_main: ["util.report", "spread", result, "--output", result],
    }
    for main, words in calls.items():
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        with pytest.raises(FewShotError, match="overwritten by its own result"):
            main()
    for option, target in (("--json", config), ("--png", cfg.val_list)):
        with pytest.raises(FewShotError, match="overwritten by its own result"):
            lists_main(["--config", str(config), "--stats", option, str(target)])
    assert whole.read_bytes() == before and result.read_text() == "{}"
    assert Path(cfg.val_list).read_text().startswith("0.jpg")


def test_only_few_shot_checkpoints_of_this_project_can_be_exported(case, tmp_path):
    cfg, _, _ = case
    with pytest.raises(FewShotError, match="is a base learner"):
        export(cfg.base_weight, tmp_path / "x.pth")
    torch.save({"w": torch.ones(1)}, tmp_path / "foreign.pth")
    with pytest.raises(FewShotError, match="does not say how it was trained"):
        export(tmp_path / "foreign.pth", tmp_path / "x.pth")
    assert not (tmp_path / "x.pth").exists()
