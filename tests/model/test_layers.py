"""Resizing, the base learner, and the rewriting of pyramid pooling and of the decoder's MLPs."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from model.decoder import MLP
from model.fast.decoder import ComposedMLP
from model.fast.derived import refine
from model.fast.pooling import CellwiseHead
from model.fast.positions import object_places
from model.fewshot import total
from model.layers import ConvNorm, nearest
from model.pspnet import PyramidHead
from tests.models import build
from util.weights.checkpoint import load_weights

pytestmark = pytest.mark.numeric


@settings(max_examples=60, deadline=None)
@given(source=st.integers(1, 700), target=st.integers(1, 100))
def test_nearest_is_torchs(source, target):
    mask = torch.arange(source, dtype=torch.float32)[None, None, None]
    expected = F.interpolate(mask, size=(1, target), mode="nearest")[0, 0]
    assert torch.equal(nearest(mask[0], (1, target))[0], expected)


def lively_mlp(classifier):
    torch.manual_seed(0)
    mlp = MLP(3, torch.nn.Conv2d(12, 2, 1) if classifier else ConvNorm(12, 3, 1, bias=True))
    for norm in (m for m in mlp.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        for values in (norm.running_mean, norm.weight.data, norm.bias.data):
            values.normal_()
        norm.running_var.uniform_(0.5, 2)
    return mlp.double().eval()


@pytest.mark.parametrize("classifier", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 2), (6, 9)])
def test_mlp_as_one_convolution(classifier, size):
    """Values, at the border too, and gradients."""
    mlp, x = lively_mlp(classifier), torch.randn(2, 3, *size, dtype=torch.float64)
    found = []
    for _ in range(2):
        mlp.zero_grad()
        leaf = x.clone().requires_grad_()
        out = mlp(leaf)
        out.sin().sum().backward()
        with torch.no_grad():
            unkept = mlp(x)
            getattr(mlp, "derive", bool)()
            kept = mlp(x)
        found.append([out, unkept, kept, leaf.grad, *(p.grad for p in mlp.parameters())])
        refine(mlp, {MLP: ComposedMLP})
    for plain, composed in zip(*found, strict=True):
        assert torch.allclose(plain, composed, rtol=0, atol=1e-9)


def test_mlp_whose_batch_norms_learn_is_not_composed():
    mlp, x = lively_mlp(False), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    refine(mlp, {MLP: ComposedMLP})
    before = mlp[1].bn.running_mean.clone()
    mlp.train()(x)
    assert not torch.equal(mlp[1].bn.running_mean, before)


@settings(max_examples=40, deadline=None)
@given(
    h=st.integers(1, 17), w=st.integers(1, 17), batch=st.integers(1, 3),
    within=st.floats(0.01, 1), number=st.integers(1, 60), seed=st.integers(0, 9),
)  # fmt: skip
def test_pyramid_pooling_rewritten(h, w, batch, within, number, seed):
    torch.manual_seed(seed)
    head = PyramidHead(8, 6).double().eval()
    f4 = torch.randn(batch, 8, h, w, dtype=torch.float64)
    # Positions anywhere in a part of the map, few or many.
    place = torch.rand(2, batch, number) * within + torch.rand(2, 1, 1) * (1 - within)
    positions = (place[0] * h).long() * w + (place[1] * w).long()
    with torch.no_grad():
        expected = head(f4)
        refine(head, {PyramidHead: CellwiseHead})
        for derive in (bool, head.derive):
            derive()
            assert torch.allclose(head(f4), expected, rtol=0, atol=1e-10)
            at = head.at(f4, positions)
            dense = expected.flatten(2).transpose(1, 2)
            index = positions[:, :, None].expand_as(at)
            assert torch.allclose(at, torch.gather(dense, 1, index), rtol=0, atol=1e-10)


@given(st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=4))
def test_object_places(rows):
    mask = torch.tensor(rows).view(-1, 3, 4)
    features = torch.arange(12.0).view(1, 12, 1).expand(len(rows), 12, 1) + 1
    for count in (True, False):
        places = object_places(mask, count)
        for sample, where, good in zip(rows, places.positions, places.valid, strict=True):
            assert where[good].tolist() == [i for i, inside in enumerate(sample) if inside]
        assert places.of(features).sum() == (features[:, :, 0] * mask.flatten(1)).sum()


@pytest.mark.parametrize(
    "backbone, stem, builder",
    [
        ("resnet50", "7x7", torchvision.models.resnet50),
        ("vgg16", "deep", torchvision.models.vgg16_bn),
    ],
)
def test_encoder_is_torchvisions(backbone, stem, builder):
    """The encoder holds torchvision's network: same stage-2 features from the same weights."""
    torch.manual_seed(0)
    theirs = builder(weights=None).eval()
    model = build(0, arch="PSPNet", backbone=backbone, stem=stem, width=64)
    load_weights(model, theirs.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features = model.encoder(image)
        if backbone == "vgg16":
            x = theirs.features[:24](image)
            expected = F.interpolate(x, size=(4, 4), mode="bilinear", align_corners=True)
        else:
            x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
            expected = theirs.layer2(theirs.layer1(x))
    assert torch.allclose(features.f2, expected, atol=1e-4)


@pytest.mark.parametrize("fix_bn", [True, False])
def test_base_learner_trains_and_honours_fix_bn(fix_bn):
    model = build(0, arch="PSPNet", fix_bn=fix_bn).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    logits = model(torch.randn(2, 3, 49, 57))
    assert logits.shape == (2, 6, 49, 57)
    total(model.losses(logits, torch.randint(0, 6, (2, 49, 57)))).backward()
    assert all(p.grad is not None for p in model.parameters())
    changed = any(not torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert changed is not fix_bn
