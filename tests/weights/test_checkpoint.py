"""Weight files: layouts, mismatches explained, damaged and hostile files refused."""

import os
import pickle

import pytest
import torch

from tests.models import build
from tests.parity import load_layout
from util.runtime.errors import FewShotError
from util.weights.checkpoint import load_weights, read_checkpoint, trained_shot


def test_stage_one_checkpoint_fills_the_frozen_part(tmp_path):
    base, model = build(1, arch="PSPNet"), build(2)
    path = tmp_path / "base.pth"
    torch.save({"model": {f"module.{k}": v for k, v in base.state_dict().items()}}, path)
    report = load_weights(model, path)
    assert report.layout == "this project"
    for name, tensor in base.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    alone = build(2, ensemble=False)
    assert load_weights(alone, path).passed_over == (
        "base_learner.conv.weight",
        "base_learner.conv.bias",
    )


def published_pspnet():
    """A base learner in the published naming, from one in ours."""
    state = {}
    for name, tensor in build(1, arch="PSPNet").state_dict().items():
        head, *rest = name.split(".")
        if head == "encoder" and rest[0] == "stem":
            index = 3 * int(rest[1]) + (rest[2] == "bn")
            name = f"layer0.{index}.{rest[3]}"
        elif head == "encoder":
            stage, block, conv, kind, leaf = rest
            if conv == "downsample":
                conv = f"downsample.{int(kind == 'bn')}"
            else:
                conv = kind + conv.removeprefix("conv")
            name = f"{stage}.{block}.{conv}.{leaf}"
        elif head == "head" and rest[0] == "pools":
            name = f"ppm.features.{rest[1]}.{1 + (rest[2] == 'bn')}.{rest[3]}"
        elif head == "head":
            name = f"cls.{int(rest[1] == 'bn')}.{rest[2]}"
        else:
            name = f"cls.4.{rest[-1]}"
        state[name] = tensor
    return state


@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_base_learner(prefix):
    model = build(2)
    state = {prefix + name: tensor for name, tensor in published_pspnet().items()}
    assert load_weights(model, {"state_dict": state}).layout == "PSPNet, ResNet"
    for name, tensor in build(1, arch="PSPNet").state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_deep_stem_imagenet_weights():
    state = {}
    for name, tensor in published_pspnet().items():
        if name.startswith("layer0."):
            _, index, leaf = name.split(".")
            name = f"{'bn' if int(index) % 3 else 'conv'}{int(index) // 3 + 1}.{leaf}"
        if not name.startswith(("ppm", "cls")):
            state[name] = tensor
    state["fc.weight"] = torch.zeros(10, 4)
    model = build(2, arch="PSPNet")
    report = load_weights(model, state)
    assert report.layout == "ImageNet ResNet" and report.passed_over == ("fc.weight",)
    expected = build(1, arch="PSPNet").encoder.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in model.encoder.state_dict().items())
    with pytest.raises(FewShotError, match="stem"):
        load_weights(build(2, arch="PSPNet", stem="7x7"), state)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"num_base": 60}, ("cls.4.weight", r"\[6, 64, 1, 1\]", r"\[61, 64, 1, 1\]", "split")),
        ({"width": 16}, ("width",)),
        ({"backbone": "resnet50"}, ("backbone",)),
    ],
)
def test_a_mismatch_names_tensor_shapes_and_key(change, words):
    model = build(2, **change)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for word in words:
        with pytest.raises(FewShotError, match=word):
            load_weights(model, published_pspnet())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_incomplete_sources_are_refused():
    state = build(1).state_dict()
    model = build(2)
    del state["decoder.head.2.bias"]
    with pytest.raises(FewShotError, match="decoder.head.2.bias"):
        load_weights(model, state)
    part = {k: v for k, v in build(1).state_dict().items() if k.startswith("encoder.")}
    load_weights(model, part)
    with pytest.raises(FewShotError, match="no values"):
        load_weights(model, part, complete=True)


@pytest.mark.parametrize("shot", [1, 3, 5])
def test_a_file_tells_the_shot_it_was_trained_with(shot, tmp_path):
    state = build(1, shot=shot).state_dict()
    torch.save({"model": {f"module.{name}": t for name, t in state.items()}}, tmp_path / "a.pth")
    assert trained_shot(tmp_path / "a.pth") == trained_shot(state) == shot
    assert trained_shot(build(1, arch="PSPNet").state_dict()) is None
    assert trained_shot(build(1, shot=shot, ensemble=False).state_dict()) is None


@pytest.mark.parametrize("case, shot", [("vgg16_pascal_1shot", 1), ("resnet50_coco_5shot", 5)])
def test_a_published_file_tells_it_too(case, shot):
    layout = load_layout(f"hdmnet_{case}")
    state = {f"module.{name}": torch.empty(shape) for name, shape in layout.items()}
    assert trained_shot({"state_dict": state}) == shot


def test_other_number_of_shots():
    with pytest.raises(FewShotError, match="shot"):
        load_weights(build(1, shot=1), build(1, shot=5).state_dict())
    with pytest.raises(FewShotError, match="shot"):
        load_weights(build(1, shot=3), build(1, shot=5).state_dict())


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_damaged_and_hostile_files(tmp_path):
    good = tmp_path / "good.pth"
    torch.save({"model": build(1).state_dict()}, good)
    content = good.read_bytes()
    files = {
        "empty": b"",
        "text": b"not a checkpoint at all",
        "half": content[: len(content) // 2],
        "short": content[:100],
        "cut": content[:-1],
        "pickle": pickle.dumps(Hostile(str(tmp_path / "owned"))),
        "list": None,
    }
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save(Hostile(str(tmp_path / "owned")), tmp_path / "hostile.pth")
    for name, data in files.items():
        if data is not None:
            (tmp_path / f"{name}.pth").write_bytes(data)
        with pytest.raises(FewShotError, match=f"{name}.pth"):
            read_checkpoint(tmp_path / f"{name}.pth")
    with pytest.raises(FewShotError, match="hostile.pth"):
        read_checkpoint(tmp_path / "hostile.pth")
    assert not (tmp_path / "owned").exists()
    with pytest.raises(FewShotError, match="does not exist"):
        read_checkpoint(tmp_path / "missing.pth")
    with pytest.raises(FewShotError, match="known layouts"):
        load_weights(build(1), {"strange": torch.zeros(1)})


@pytest.mark.parametrize("change, words", [
    (lambda t: t.to(torch.int8), "int8 numbers, which are no trained weights"),
    (lambda t: t > 0, "bool numbers"),
    (lambda t: torch.full_like(t, torch.nan), "not finite"),
    (lambda t: t.double() + 1e300, "not finite"),
])  # fmt: skip
def test_numbers_that_are_no_weights_are_refused_and_nothing_changes(change, words):
    state, model = build(1).state_dict(), build(2)
    name = "decoder.head.2.bias"
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(FewShotError, match=f"tensor {name} holds .*{words}"):
        load_weights(model, state | {name: change(state[name])})
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    load_weights(model, state | {name: state[name].to(torch.bfloat16)})
