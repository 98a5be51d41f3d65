"""Optimisers, parameter groups and the learning-rate schedule."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from model import build_model
from util.config import load_config
from util.train.optim import build_optimizer, learning_rate, update_lr

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["backbone", "resnet18", "width", "8", "pretrained", "none"]


def config(*overrides, name="pascal/pascal_split0_resnet50"):
    return load_config(ROOT / f"config/{name}.yaml", list(overrides))


class TwoSpeeds(nn.Module):
    """A slow layer, a quick one and a frozen one."""

    def __init__(self):
        super().__init__()
        self.slow, self.quick, self.frozen = (nn.Linear(2, 2) for _ in range(3))
        self.frozen.requires_grad_(False)

    def param_groups(self, cfg):
        return [
            {"name": "slow", "params": list(self.slow.parameters()), "lr_scale": 1.0},
            {"name": "quick", "params": list(self.quick.parameters()), "lr_scale": 10.0},
            {"name": "frozen", "params": list(self.frozen.parameters()), "lr_scale": 1.0},
        ]


def test_groups_without_frozen_parameters():
    model, cfg = TwoSpeeds(), config()
    model.quick.bias.requires_grad_(False)
    groups = build_optimizer(model, cfg).param_groups
    assert [g["name"] for g in groups] == ["slow", "quick"]
    assert [len(g["params"]) for g in groups] == [2, 1]
    assert [g["lr"] for g in groups] == pytest.approx([1e-4, 1e-3])


def test_nothing_to_learn():
    model = TwoSpeeds().requires_grad_(False)
    with pytest.raises(ValueError, match="TwoSpeeds has no parameter"):
        build_optimizer(model, config())


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("pascal_split0_resnet50", torch.optim.AdamW, {"weight_decay": 0.01}),
        ("pascal_split0_resnet50_base", torch.optim.SGD, {"momentum": 0.9, "weight_decay": 1e-4}),
        ("pascal_split0_resnet50_hsnet", torch.optim.Adam, {"weight_decay": 0.0}),
    ],
)
def test_published_optimisers(name, kind, settings):
    optimizer = build_optimizer(TwoSpeeds(), config(name=f"pascal/{name}"))
    assert type(optimizer) is kind
    for group in optimizer.param_groups:
        assert {key: group[key] for key in settings} == settings
        assert group.get("betas", (0.9, 0.999)) == (0.9, 0.999)


def test_hdmnet_learns_what_the_published_optimiser_learns():
    for fidelity in ("released", "corrected"):
        cfg = config("shot", 5, "fidelity", fidelity, *SMALL)
        model = build_model(cfg)
        groups = build_optimizer(model, cfg).param_groups
        assert [g["lr"] / cfg.base_lr for g in groups] == pytest.approx([1, 10])
        learned = {id(p) for g in groups for p in g["params"]}
        names = {name for name, p in model.named_parameters() if id(p) in learned}
        assert len(learned) == sum(len(g["params"]) for g in groups)
        assert not any(name.startswith(("encoder.", "head.", "base_learner.")) for name in names)
        left_out = {n for n, p in model.named_parameters() if p.requires_grad} - names
        assert all("reweight" in name for name in left_out)
        assert bool(left_out) == (fidelity == "released")


@pytest.mark.parametrize("arch", ["PSPNet", "HSNet"])
def test_other_models(arch):
    cfg = config("arch", arch, "stem", "7x7", *SMALL)
    model = build_model(cfg)
    learned = sum(len(g["params"]) for g in build_optimizer(model, cfg).param_groups)
    assert learned == sum(p.requires_grad for p in model.parameters()) > 0


def test_poly_decay_counts_from_one():
    cfg = config()
    optimizer = build_optimizer(TwoSpeeds(), cfg)
    for iteration in (1, 37, 99, 100):
        rate = update_lr(optimizer, cfg, iteration, 100)
        assert rate == pytest.approx(1e-4 * (1 - iteration / 100) ** 0.9)
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([rate, 10 * rate])
    assert rate == 0.0
    for wrong in (0, 101):
        with pytest.raises(ValueError, match="iteration"):
            update_lr(optimizer, cfg, wrong, 100)


def test_constant_rate_without_power():
    cfg = config("power", 0)
    assert {learning_rate(cfg, i, 10) for i in range(1, 11)} == {1e-4}


def test_warmup_as_in_bam():
    cfg = config("warmup", True, "warmup_step", 10)
    assert learning_rate(cfg, 5, 1000) == pytest.approx(1e-4 * 0.55)
    assert learning_rate(cfg, 9, 1000) == pytest.approx(1e-4 * 0.91)
    assert learning_rate(cfg, 10, 1000) == pytest.approx(1e-4 * (1 - 10 / 1000) ** 0.9)


@settings(max_examples=50, deadline=None)
@given(total=st.integers(2, 10**6), data=st.data(), power=st.floats(0.1, 5))
def test_rate_never_rises_and_stays_in_range(total, data, power):
    cfg = config().replace(power=power)
    i = data.draw(st.integers(1, total - 1))
    before, after = learning_rate(cfg, i, total), learning_rate(cfg, i + 1, total)
    assert 0 <= after <= before < cfg.base_lr and math.isfinite(before)


def test_state_keeps_the_groups():
    cfg = config()
    model = TwoSpeeds()
    optimizer = build_optimizer(model, cfg)
    model.quick(model.slow(torch.ones(1, 2))).sum().backward()
    update_lr(optimizer, cfg, 5, 10)
    optimizer.step()
    again = build_optimizer(model, cfg)
    again.load_state_dict(optimizer.state_dict())
    for old, new in zip(optimizer.param_groups, again.param_groups, strict=True):
        assert {k: v for k, v in old.items() if k != "params"} == {
            k: v for k, v in new.items() if k != "params"
        }
