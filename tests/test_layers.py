"""Resizing, folding and the rewriting of pyramid pooling."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from model.decoder import MLP
from model.layers import ConvNorm, nearest, set_folding
from model.positions import all_places, object_places
from model.pspnet import PyramidHead
from tests.models import build
from util.checkpoint import load_weights

pytestmark = pytest.mark.numeric


@settings(max_examples=60, deadline=None)
@given(source=st.integers(1, 700), target=st.integers(1, 100))
def test_nearest_is_torchs(source, target):
    mask = torch.arange(source, dtype=torch.float32)[None, None, None]
    expected = F.interpolate(mask, size=(1, target), mode="nearest")[0, 0]
    assert torch.equal(nearest(mask[0], (1, target))[0], expected)


def folded_pair():
    torch.manual_seed(0)
    conv = ConvNorm(4, 6, 3, padding=1).double().eval()
    conv.bn.running_mean.normal_()
    conv.bn.running_var.uniform_(0.5, 2)
    return conv, torch.randn(2, 4, 9, 7, dtype=torch.float64)


def test_folding_follows_the_weights_and_is_never_saved():
    conv, x = folded_pair()
    names = set(conv.state_dict())
    with torch.no_grad():
        for change in (
            lambda: None,
            lambda: conv.conv.weight.mul_(2),
            lambda: conv.bn.running_var.add_(1),
            lambda: conv.load_state_dict({k: v + 1 for k, v in conv.state_dict().items()}),
        ):
            change()
            set_folding(conv, False)
            plain = conv(x)
            set_folding(conv, True)
            assert torch.allclose(conv(x), plain, rtol=0, atol=1e-12)
        with torch.inference_mode():
            conv(x)
        conv(x)
    assert set(conv.state_dict()) == names


def test_gradients_flow_through_the_folding():
    conv, x = folded_pair()
    found = []
    for fold in (False, True):
        set_folding(conv, fold)
        conv.zero_grad()
        conv(x).sin().sum().backward()
        found.append([p.grad.clone() for p in conv.parameters()])
    assert len(found[0]) == 3
    for plain, folded in zip(*found, strict=True):
        assert torch.allclose(plain, folded, rtol=0, atol=1e-10)


def test_batch_norms_in_training_are_not_folded():
    conv, x = folded_pair()
    set_folding(conv, True)
    before = conv.bn.running_mean.clone()
    conv.train()(x)
    assert not torch.equal(conv.bn.running_mean, before)


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
    """Values, at the border too, and gradients; after a change of the weights too."""
    mlp, x = lively_mlp(classifier), torch.randn(2, 3, *size, dtype=torch.float64)
    for _ in range(2):
        found = []
        for fold in (False, True):
            set_folding(mlp, fold)
            mlp.zero_grad()
            leaf = x.clone().requires_grad_()
            out = mlp(leaf)
            out.sin().sum().backward()
            with torch.no_grad():
                kept = mlp(x)
            found.append([out, kept, leaf.grad, *(p.grad for p in mlp.parameters())])
        for plain, composed in zip(*found, strict=True):
            assert torch.allclose(plain, composed, rtol=0, atol=1e-9)
        with torch.no_grad():
            mlp[1].conv.weight.mul_(1.5)
            mlp[0].bn.bias.add_(1)


def test_mlp_whose_batch_norms_learn_is_not_composed():
    mlp, x = lively_mlp(False), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    set_folding(mlp, True)
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
    set_folding(head, True)
    f4 = torch.randn(batch, 8, h, w, dtype=torch.float64)
    # Positions anywhere in a part of the map, few or many.
    place = torch.rand(2, batch, number) * within + torch.rand(2, 1, 1) * (1 - within)
    positions = (place[0] * h).long() * w + (place[1] * w).long()
    with torch.no_grad():
        expected = head(f4)
        assert torch.allclose(head.fast(f4), expected, rtol=0, atol=1e-10)
        at = head.fast_at(f4, positions)
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
    everything = all_places(mask)
    assert everything.of(features) is features
    assert torch.equal(everything.valid, mask.flatten(1))


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
    model.losses(logits, torch.randint(0, 6, (2, 49, 57)))["total"].backward()
    assert all(p.grad is not None for p in model.parameters())
    changed = any(not torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert changed is not fix_bn
