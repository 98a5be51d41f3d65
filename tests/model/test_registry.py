"""What a method requires of a configuration is said once, and reaches the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

import model
from model.fewshot import FewShotModel
from model.registry import ARCHITECTURES, REQUIREMENTS, Requirements, method, reads
from util.config import load_config
from util.config.schema import KEYS
from util.runtime.errors import FewShotError

PASCAL = Path(__file__).resolve().parents[2] / "config/pascal/pascal.yaml"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_class_and_the_registry_say_the_same(arch):
    assert method(arch).requirements is REQUIREMENTS[arch] and method(arch).__name__ == arch
    assert set(REQUIREMENTS[arch].options) <= set(KEYS)
    if arch in model.FASTER:
        assert issubclass(type(model.build_model(load_config_of(arch))), method(arch))


def load_config_of(arch, *options):
    small = ["arch", arch, "backbone", "resnet18", "width", 8]
    return load_config(PASCAL, [*small, *options])


def test_a_class_of_ones_own_requires_what_it_says(monkeypatch):
    class Mine(FewShotModel):
        requirements = Requirements(
            optimizer="sgd",
            base_learner="PSPNet",
            options=("matching",),
            fits=lambda cfg, size: size % 32 == 1,
        )

    monkeypatch.setitem(ARCHITECTURES, "Mine", Mine)
    monkeypatch.setitem(ARCHITECTURES, "Plain", FewShotModel)
    size = ["train_h", 97, "train_w", 97, "val_size"]
    cfg = load_config_of("Mine", *size, 97)
    assert cfg.optimizer == "sgd" and cfg.base_weight.startswith("exp/pascal/PSPNet/split0")
    with pytest.raises(FewShotError, match="val_size 96 does not suit Mine with .*; 97 works"):
        load_config_of("Mine", *size, 96)
    assert reads("Mine", "matching") and reads("Mine", "width") and not reads("Mine", "stages")
    plain = load_config_of("Plain")
    assert (plain.optimizer, plain.base_weight) == ("adamw", None)
    assert all(reads("Plain", key) for key in KEYS)
