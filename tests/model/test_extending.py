"""The example of docs/extending.md is run as it stands there: a method is one file and one line."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

import model
from model.fewshot import join_shots, total
from tests.equality import same_counts
from tests.models import episode, options, run
from tests.training_case import make_data
from util.config import load_config
from util.data.index import build_index
from util.evaluate import Evaluator
from util.train.optim import build_optimizer, update_lr

pytestmark = pytest.mark.numeric

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"


def code_blocks(language: str) -> list[str]:
    blocks = PAGE.read_text(encoding="utf-8").split("```")[1::2]
    return [b.removeprefix(f"{language}\n") for b in blocks if b.startswith(f"{language}\n")]


@pytest.fixture
def protonet(monkeypatch):
    """The class of the page, registered as the page says."""
    module = ModuleType("model.protonet")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # for its annotations
    (source,) = code_blocks("python")
    exec(compile(source, str(PAGE), "exec"), module.__dict__)
    monkeypatch.setitem(model.ARCHITECTURES, "ProtoNet", module.ProtoNet)
    torch.manual_seed(0)
    return model.build_model(options(arch="ProtoNet"))


def test_forward_is_the_five_steps(protonet) -> None:
    protonet.eval()
    data = episode((49, 57), batch=2, shot=3)
    out = run(protonet, data)
    assert out.final.shape == (2, 2, 49, 57)
    for b in range(2):
        query = protonet.prepare_query(protonet.encode_query(data["query_image"][b : b + 1]))
        supports = [
            protonet.prepare_support(protonet.encode_support(image[None], mask[None]))
            for image, mask in zip(data["support_images"][b], data["support_masks"][b], strict=True)
        ]
        for order in (supports, supports[::-1]):
            alone = protonet.match(query, join_shots([order]), (49, 57))
            torch.testing.assert_close(alone.final[0], out.final[b], rtol=1e-4, atol=1e-4)


def test_the_support_decides(protonet) -> None:
    protonet.eval()
    data = episode((49, 49))
    first = run(protonet, data).final
    data["support_masks"] = 1 - data["support_masks"]
    other = run(protonet, data).final
    torch.testing.assert_close(other, first.flip(1), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(other, first, atol=1e-2)


def test_learning_moves_the_projection_alone(protonet) -> None:
    cfg = options(arch="ProtoNet", optimizer="adamw", base_lr=0.01, weight_decay=0.0, power=0.9,
                  warmup=False)  # fmt: skip
    optimizer = build_optimizer(protonet, cfg)
    before = {name: value.clone() for name, value in protonet.state_dict().items()}
    data = episode((49, 49), batch=2)
    protonet.train()
    losses = []
    for iteration in range(1, 9):
        update_lr(optimizer, cfg, iteration, 10)
        terms = protonet.losses(run(protonet, data, training=True), data["query_mask"], None)
        optimizer.zero_grad()
        loss = total(terms)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    changed = {
        name for name, value in protonet.state_dict().items() if (value != before[name]).any()
    }
    # The bias shifts prototypes and query alike, and moves too.
    assert changed == {"project.weight", "project.bias"} == set(protonet.learnable_state())


def test_it_is_evaluated_like_any_other(protonet, tmp_path, in_double) -> None:
    make_data(tmp_path)
    cfg = load_config(tmp_path / "stage2.yaml", ["arch", "ProtoNet", "shot", 2])
    assert cfg.exp_dir().parts[-4:] == ("ProtoNet", "split0", "resnet18", "2shot")
    evaluator = Evaluator(cfg, build_index(cfg, "test"))
    results = [
        evaluator.run(protonet.double(), [1, 2], 6, engine=engine, progress=False)
        for engine in ("walk", "naive")
    ]
    assert same_counts(*results)
    assert results[0].mean["miou"] is not None and results[0].mean["miou_meta"] is None


def test_the_configurations_of_the_page_load(protonet, tmp_path) -> None:
    method, data_set = code_blocks("yaml")
    (tmp_path / "pascal.yaml").write_text(yaml.safe_dump({"DATA": {"data_set": "pascal"}}))
    for name, text in (("method", method), ("data", data_set)):
        (tmp_path / f"{name}.yaml").write_text(text)
    assert load_config(tmp_path / "method.yaml").arch == "ProtoNet"
    for fruit in ("apple", "pear", "cherry", "plum"):
        folder = tmp_path / "fruit" / fruit
        folder.mkdir(parents=True)
        (folder / "1.jpg").touch()
        (folder / "1.png").touch()
    cfg = load_config(tmp_path / "data.yaml", ["data_root", str(tmp_path / "fruit")])
    assert [cfg.fold.names[c] for c in cfg.fold.novel] == ["apple", "pear"]
