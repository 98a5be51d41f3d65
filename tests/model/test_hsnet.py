"""HSNet: reference figures, the efficient form against the textbook, and the rules of the vote."""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given
from hypothesis import strategies as st

from model import build_model
from model.fast.hypercorrelation import support_positions
from model.fewshot import join, join_shots, total
from model.hsnet import HSNet, vote
from model.hsnet_backbone import BACKBONES
from model.hypercorrelation import hypercorrelation, object_weight, resized_mask
from tests.models import episode, options, run
from tests.parity import load_case, load_layout, relative_error, released_state
from util.weights.checkpoint import load_weights
from util.weights.layouts import LAYOUTS

pytestmark = pytest.mark.numeric

PARAMETERS = {"resnet50": 2_573_794, "resnet101": 2_587_394, "vgg16": 2_570_018}


HSNET = dict(
    arch="HSNet", stem="7x7", backbone="resnet18", width=4, pyramid=(8, 16, 32),
    hyper_layers="all", kernel4d="center_pivot",
)  # fmt: skip


def configuration(**changes):
    return options(**{**HSNET, **changes})


def build(seed: int = 0, **changes) -> HSNet:
    """Narrow HSNet with random weights and batch-norm statistics, in evaluation mode."""
    torch.manual_seed(seed)
    model = build_model(configuration(**changes))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    return model.eval()


def twins(**changes) -> tuple[HSNet, HSNet]:
    """The same weights in the efficient and in the textbook form, in float64."""
    fast, textbook = (build(compute=form, **changes).double() for form in ("fast", "textbook"))
    fast.derive()
    return fast, textbook


def episodes(batch=2, shots=1, query=(64, 96), support=(320, 288), dtype=torch.float64, seed=0):
    """Random pictures; the objects differ in size and place, none of them touches all positions."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(batch, shots, *support, dtype=torch.uint8)
    for number, mask in enumerate(masks.flatten(0, 1)):
        top, left = 40 * (number % 4), 30 * (number % 3)
        mask[top : top + 60 + 20 * number, left : left + 90] = 1
        mask[-50:, -90:-60] = 1  # a second part, so that rows of the grid have holes
        mask[top : top + 5] = 255
    return (
        torch.randn(batch, 3, *query, generator=generator, dtype=dtype),
        torch.randn(batch, shots, 3, *support, generator=generator, dtype=dtype),
        masks,
    )


def gradients(model, data, target) -> dict[str, torch.Tensor]:
    model.train()
    model.zero_grad(set_to_none=True)
    total(model.losses(model(*data), target, None)).backward()
    model.eval()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def assert_same(fast, textbook, data):
    """Outputs to 1e-9, gradients to 1e-7 of their norm (1-shot data)."""
    with torch.no_grad():
        a, b = fast(*data), textbook(*data)
    assert relative_error(a.final, b.final.numpy()) < 1e-9
    for x, y in zip(a.correlations, b.correlations, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)
    if data[1].shape[1] > 1:
        return
    target = (torch.arange(data[0].shape[-1]) % 3 == 0).long().expand(len(data[0]), 1, -1)
    target = target.expand(-1, data[0].shape[-2], -1)
    ours, theirs = gradients(fast, data, target), gradients(textbook, data, target)
    largest = max(g.norm() for g in theirs.values())
    for name, gradient in theirs.items():
        error = (ours[name] - gradient).norm()
        assert error <= 1e-7 * gradient.norm() + 1e-12 * largest, name


# Reference figures


@lru_cache(maxsize=1)
def published_state(backbone, seed):
    """Without VGG's classifier, whose 120 million values nobody uses."""
    layout = load_layout(f"hsnet_{backbone}")
    return released_state({n: s for n, s in layout.items() if ".classifier." not in n}, seed)


@pytest.mark.parametrize("compute", ["fast", "textbook"])
@pytest.mark.parametrize("case", ["hsnet_resnet50_1shot", "hsnet_vgg16_3shot"])
def test_reference_figures(case, compute):
    arrays, meta = load_case(case)
    model = build_model(configuration(backbone=meta["backbone"], width=64, compute=compute))
    state = published_state(meta["backbone"], meta["weight_seed"])
    load_weights(model, state, complete=True)
    data = [torch.as_tensor(arrays[f"support_{name}"]) for name in ("image", "mask")]
    query, images, masks = torch.as_tensor(arrays["query_image"]).float(), data[0].float(), data[1]

    model.eval()
    with torch.no_grad():
        one = model(query, images[:, :1], masks[:, :1])
        prediction = model(query, images, masks).final.argmax(1).numpy()
    assert relative_error(one.final, arrays["logits"]) < 1e-4
    assert np.mean(prediction != arrays["pred_nshot"]) <= 1e-3

    model.train()
    out = model(query, images[:, :1], masks[:, :1])
    loss = model.losses(out, torch.as_tensor(arrays["query_mask"]), None)["main"].value
    assert abs(loss.item() / float(arrays["loss"]) - 1) < 1e-3
    loss.backward()
    (rename,) = (known.rename for known in LAYOUTS if known.recognises(state))
    learnable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    ours = {name: p.grad.double().norm().item() for name, p in learnable}
    theirs = dict(zip(arrays["grad_names"].tolist(), arrays["grad_norms"], strict=True))
    assert {rename(name) for name in theirs} == set(ours)
    floor = 1e-8 * max(theirs.values())
    for name, norm in theirs.items():
        allowed = 1e-2 * max(norm, floor) if norm else 0
        assert abs(ours[rename(name)] - norm) <= allowed, name


@pytest.mark.parametrize("backbone", PARAMETERS)
def test_number_of_learnable_parameters(backbone):
    with torch.device("meta"):
        model = build_model(configuration(backbone=backbone, width=64))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == PARAMETERS[backbone]


# Backbones


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet101"])
def test_taps_are_torchvision_blocks_before_their_relu(name):
    torch.manual_seed(0)
    published = getattr(torchvision.models, name)(weights=None).eval()
    with torch.device("meta"):
        model = build_model(configuration(backbone=name, width=64))
    model.to_empty(device="cpu")
    load_weights(model, published.state_dict())
    outputs = []
    for stage in (published.layer2, published.layer3, published.layer4):
        for block in stage:
            block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        published(image)
        taps = list(model.encoder(image))
    assert len(taps) == len(outputs) == sum(model.encoder.layers)
    groups = [group for group, _ in taps]
    assert [groups.count(group) for group in range(3)] == list(model.encoder.layers)
    assert groups == sorted(groups)
    for (_, tap), output in zip(taps, outputs, strict=True):
        assert tap.min() < 0
        assert relative_error(F.relu(tap), output.numpy()) < 1e-5


def test_taps_of_vgg_are_torchvision_layers():
    torch.manual_seed(0)
    published = torchvision.models.vgg16(weights=None, init_weights=False).eval()
    with torch.device("meta"):
        model = build_model(configuration(backbone="vgg16", width=64))
    model.to_empty(device="cpu")
    load_weights(model, published.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        taps = [tap for _, tap in model.encoder(x)]
        expected = {}
        for index, layer in enumerate(published.features):
            x = layer(x)
            expected[index] = x.clone()  # torchvision's ReLUs work in place
    for index, tap in zip((17, 19, 21, 24, 26, 28, 30), taps, strict=True):
        torch.testing.assert_close(tap, expected[index])


def test_folding_changes_nothing_and_follows_new_weights():
    fast, textbook = twins(backbone="resnet50")
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    for seed in range(2):
        with torch.no_grad():
            pairs = zip(fast.encoder(image), textbook.encoder(image), strict=True)
            for (_, a), (_, b) in pairs:
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
        other = build(seed + 1, backbone="resnet50").state_dict()
        fast.load_state_dict(other)
        textbook.load_state_dict(other)


# Efficient form against the textbook


@pytest.mark.parametrize("shots", [1, 3])
@pytest.mark.parametrize("backbone", ["resnet18", "vgg16"])
def test_forms_agree(backbone, shots):
    assert_same(*twins(backbone=backbone), episodes(shots=shots))


@pytest.mark.parametrize(
    "options",
    [
        {"pyramid": [8, 32]},
        {"pyramid": [16]},
        {"hyper_layers": "shallow"},
        {"hyper_layers": "deep", "pyramid": [16, 32]},
        {"mask_support": False},
        {"stem": "deep"},
    ],
    ids=str,
)
def test_forms_agree_in_the_ablations(options):
    assert_same(*twins(**options), episodes(batch=1))


@pytest.mark.parametrize("mask", ["empty", "full", "mixed"])
def test_forms_agree_for_extreme_masks(mask):
    query, images, masks = episodes(batch=2)
    masks[0] = masks[1] = 0 if mask == "empty" else 1
    if mask == "mixed":
        masks[1] = 0
    assert_same(*twins(), (query, images, masks))


def test_forms_agree_for_soft_masks():
    query, images, masks = episodes(batch=2)
    soft = torch.rand(masks.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert_same(*twins(), (query, images, soft * (masks == 1)))


def test_dense_first_convolution_equals_the_sparse_one(monkeypatch):
    """What a GPU would run: all support positions, zeros outside the mask."""
    model = build().double()
    data = episodes()
    target = torch.zeros(2, 64, 96, dtype=torch.long)
    sparse, sparse_out = gradients(model, data, target), model(*data).final
    monkeypatch.setattr("model.fast.hsnet.SparseHypercorrelation.is_full", lambda self: True)
    monkeypatch.setattr("model.fast.hsnet.SparseHypercorrelation.dense", _dense)
    dense, dense_out = gradients(model, data, target), model(*data).final
    torch.testing.assert_close(dense_out, sparse_out, rtol=1e-10, atol=1e-10)
    for name, gradient in sparse.items():
        torch.testing.assert_close(dense[name], gradient, rtol=1e-8, atol=1e-10)


def _dense(self):
    maps = torch.zeros(
        len(self.maps), self.grid[0] * self.grid[1], *self.maps[0].shape[1:], dtype=torch.float64
    )
    for image, listed, values in zip(maps, self.positions, self.maps, strict=True):
        image[listed] = values
    return maps.unflatten(1, self.grid)


@pytest.mark.parametrize("compute", ["fast", "textbook"])
def test_a_batch_is_its_episodes(compute):
    """Each picture of a batch on its own: correlation, norms, vote and mean maps."""
    model = build(compute=compute).double()
    data = episodes(batch=3, shots=2)
    with torch.no_grad():
        together = model(*data)
        for index in range(3):
            alone = model(*(part[index : index + 1] for part in data))
            assert torch.equal(together.final[index], alone.final[0])
            for a, b in zip(together.correlations, alone.correlations, strict=True):
                torch.testing.assert_close(a[index], b[0], rtol=1e-10, atol=1e-12)
        data = (data[0], data[1][:, :1], data[2][:, :1])
        together = model(*data).final
        for index in range(3):
            alone = model(*(part[index : index + 1] for part in data)).final
            torch.testing.assert_close(together[index], alone[0], rtol=1e-10, atol=1e-10)


def test_encodings_can_be_kept_and_joined():
    """Supports with different numbers of positions, encoded one by one, as evaluation does."""
    model = build().double()
    query, images, masks = episodes(batch=2, shots=2)
    with torch.inference_mode():
        encoded = [
            [model.encode_support(images[b, k][None], masks[b, k][None]) for k in range(2)]
            for b in range(2)
        ]
        queries = join([model.encode_query(query[b][None]) for b in range(2)])
        assert len({support[0].positions.shape[1] for pair in encoded for support in pair}) > 1
        out = model.match(queries, join_shots(encoded), (64, 96))
        expected = model(query, images, masks)
    assert torch.equal(out.final, expected.final)
    torch.testing.assert_close(out.correlations, expected.correlations, rtol=1e-10, atol=1e-12)


def test_mixed_precision_stays_close_and_trains():
    model = build()
    data = episodes(batch=1, dtype=torch.float32)
    target = torch.zeros(1, 64, 96, dtype=torch.long)
    expected = gradients(model, data, target)
    model.train()
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(*data)
    loss = model.losses(out, target, None)["main"].value
    loss.backward()
    assert torch.isfinite(loss)
    learnable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    ours = torch.cat([p.grad.flatten() for _, p in learnable])
    theirs = torch.cat([expected[name].flatten() for name, _ in learnable])
    assert ours.dtype == torch.float32
    assert F.cosine_similarity(ours, theirs, dim=0) > 0.999
    assert (ours - theirs).norm() < 0.05 * theirs.norm()


# Correlation


def test_correlation_divides_by_norm_plus_epsilon():
    q = torch.tensor([3.0, 4.0]).double().view(1, 2, 1, 1)
    for scale in (1.0, 1e-5, 1e-9):
        s = scale * torch.tensor([0.0, 1.0]).double().view(1, 2, 1, 1)
        value = hypercorrelation((q,), (s,)).item()
        assert value == pytest.approx(4 / (5 + 1e-5) * scale / (scale + 1e-5), rel=1e-12)


def test_correlation_is_rectified():
    q = torch.tensor([[1.0, 0.0], [-1.0, 0.5]]).T.reshape(1, 2, 1, 2)
    s = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    values = hypercorrelation((q,), (s,)).flatten()
    assert values[0] > 0.99 and values[1] == 0


@pytest.mark.parametrize("compute", ["fast", "textbook"])
def test_features_as_small_as_epsilon_and_opposite_ones(compute):
    """The model itself: scale the features down to 1e-5 and turn some of the supports round."""
    model = build(compute=compute).double()
    query, images, masks = episodes(batch=1)
    taps = {}

    def encoder(image):
        generator = torch.Generator().manual_seed(image.shape[-1])
        for group, stride in enumerate((8, 16, 32)):
            for layer in range(encoder.layers[group]):
                size = [-(-extent // stride) for extent in image.shape[-2:]]
                tap = 1e-6 * torch.randn(1, 4, *size, generator=generator, dtype=torch.float64)
                taps[image.shape[-1], group, layer] = tap.clone()
                yield group, tap

    encoder.layers, encoder.grids = model.encoder.layers, model.encoder.grids
    del model.encoder
    model.encoder = None
    object.__setattr__(model, "encoder", encoder)
    encodings = model.encode_query(query), model.encode_support(images[:, 0], masks[:, 0])
    with torch.no_grad():
        out = model.match(encodings[0], join_shots([[encodings[1]]]), (64, 96))
    for level, stride in enumerate((8, 16, 32)):
        weight = resized_mask((masks[:, 0] == 1).double(), (320 // stride, 288 // stride))
        total = 0
        for layer in range(model.encoder.layers[level]):
            q, s = taps[96, level, layer][0].flatten(1), taps[288, level, layer][0] * weight
            s = s.flatten(1)
            cosine = (q / (q.norm(dim=0) + 1e-5)).T @ (s / (s.norm(dim=0) + 1e-5))
            total = total + cosine.clamp(min=0)
        mean = total.sum(1) / model.encoder.layers[level] / (weight > 0).sum()
        torch.testing.assert_close(out.correlations[level].flatten(), mean, rtol=1e-9, atol=1e-15)


def test_masks_stay_soft():
    """A mask that is half an object at a position weights the feature by a half, and floating
    masks are taken as they are; ignored pixels are not object."""
    mask = torch.tensor([[[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 255], [0, 0, 255, 255]]])
    weight = object_weight(mask.to(torch.uint8), torch.float64)
    assert weight.sum() == 4
    resized = resized_mask(weight, (3, 3))[0]
    assert resized[0, 1] == pytest.approx(0.5) and resized[1, 1] == pytest.approx(0.25)
    assert torch.equal(resized_mask(weight, (4, 4)), weight)
    soft = torch.tensor([[[0.3, 255.0], [0.0, 1.0]]])
    assert torch.equal(object_weight(soft, torch.float32), torch.tensor([[[0.3, 0], [0, 1]]]))


def lists_of(values, rows):
    """``rows`` lists of six of the values."""
    row = st.lists(st.sampled_from(values), min_size=6, max_size=6)
    return rows.flatmap(lambda count: st.lists(row, min_size=count, max_size=count))


@given(lists_of([0.0, 0.2, 1.0], st.integers(1, 3)))
def test_support_positions_are_the_non_zero_ones_in_order(rows):
    mask = torch.tensor(rows).view(-1, 2, 3)
    positions = support_positions(mask)
    counts = (mask > 0).flatten(1).sum(1).tolist()
    assert positions.shape[1] == max(counts)
    for image, listed, count in zip(mask, positions.tolist(), counts, strict=True):
        assert listed[:count] == image.flatten().nonzero().flatten().tolist()


def test_only_the_object_counts():
    """What lies well outside the mask has no influence on the result with support masking."""
    model = build().double()
    unmasked = build(mask_support=False).double()
    query, images, masks = episodes(batch=1)
    with torch.no_grad():
        encoded = model.encode_support(images[:, 0], masks[:, 0])
        everything = unmasked.encode_support(images[:, 0], masks[:, 0])
    assert encoded[0].positions.shape[1] < 0.7 * everything[0].positions.shape[1]
    assert everything[0].positions.shape[1] == 40 * 36
    assert model(query, images, masks).final.ne(unmasked(query, images, masks).final).any()


# The vote


def logits_of(decisions) -> torch.Tensor:
    d = torch.as_tensor(decisions, dtype=torch.float32)
    return torch.stack([1 - 2 * d, 2 * d - 1], dim=1)


def test_vote_divides_by_the_largest_count_of_each_image():
    """Image 0: at most 2 votes, so that 1 of 2 is object, a tie at 0.5 included; image 1: at most
    3, so that 1 of 3 is not; with one denominator for both, image 0 would lose its pixel."""
    shots = [
        logits_of([[[1, 1, 0]], [[1, 1, 1]]]),
        logits_of([[[1, 0, 0]], [[1, 1, 0]]]),
        logits_of([[[0, 0, 0]], [[1, 0, 0]]]),
    ]
    decision = vote(shots)
    assert decision.argmax(1).tolist() == [[[1, 1, 0]], [[1, 1, 0]]]
    assert decision.unique().tolist() == [0, 1]


def test_vote_without_any_object_is_background():
    """The largest count is taken as at least 1: 0 / 1 is less than 0.5, 0 / 0 would not be."""
    assert vote([logits_of([[[0, 0]], [[1, 0]]])] * 5).argmax(1).tolist() == [[[0, 0]], [[1, 0]]]


@given(lists_of([0, 1], st.integers(1, 5)))
def test_vote_is_the_published_rule(rows):
    shots = [logits_of(np.array(row).reshape(2, 1, 3)) for row in rows]
    votes = np.array(rows).sum(0).reshape(2, 3)
    expected = votes / np.maximum(votes.max(1, keepdims=True), 1) >= 0.5
    assert vote(shots).argmax(1).numpy().reshape(2, 3).astype(bool).tolist() == expected.tolist()


def test_shots_vote_on_their_own_predictions():
    model = build().double()
    query, images, masks = episodes(batch=1, shots=3)
    with torch.no_grad():
        single = [model(query, images[:, k : k + 1], masks[:, k : k + 1]).final for k in range(3)]
        out = model(query, images, masks)
    assert torch.equal(out.final, vote(single))
    swapped = model(query, images[:, [2, 0, 1]], masks[:, [2, 0, 1]]).final
    assert torch.equal(swapped, out.final)


# Sizes, training mode, options


def test_vgg_at_280_names_a_size_that_works():
    model = build(backbone="vgg16")
    with pytest.raises(ValueError, match=r"280.*288 works") as error:
        model.check_size(280, 400)
    works = int(str(error.value).split()[-2])
    model.check_size(works, 400)
    image = torch.zeros(1, 3, 400, 280)
    with pytest.raises(ValueError, match="280"):
        model(image, image[None], image[:, :1])


@given(backbone=st.sampled_from(["resnet18", "vgg16"]), size=st.integers(1, 700))
def test_sizes_that_pass_give_equal_support_grids(backbone, size):
    model = HSNet.__new__(HSNet)
    object.__setattr__(model, "pyramid", (8, 16, 32))
    object.__setattr__(model, "encoder", {"resnet18": RESNET, "vgg16": VGG}[backbone])
    grids = []
    squeeze = ((4, 4, 2), (4, 2, 2), (2, 2, 2))
    for extent, strides in zip(model.encoder.grids(size), squeeze, strict=True):
        for kernel, stride in zip((5, 5, 3), strides, strict=True):
            extent = (extent + 2 * (kernel // 2) - kernel) // stride + 1
        grids.append(extent)
    if len(set(grids)) == 1 and grids[0] > 0:
        model.check_size(size, size)
    else:
        with pytest.raises(ValueError, match="works") as error:
            model.check_size(size, size)
        works = int(str(error.value).split()[-2])
        model.check_size(works, works)


with torch.device("meta"):
    RESNET, VGG = (BACKBONES[name]("7x7", 4) for name in ("resnet18", "vgg16"))


def test_training_takes_one_support():
    model = build().train()
    with pytest.raises(ValueError, match="one support"):
        model(*episodes(batch=1, shots=2, dtype=torch.float32))


def test_backbone_is_frozen():
    model = build().train()
    assert not any(module.training for module in model.encoder.modules())
    assert all(not p.requires_grad for p in model.encoder.parameters())
    assert all(name.startswith("learner.") for name in model.learnable_state())
    (group,) = model.param_groups(None)
    assert len(group["params"]) == len(list(model.learner.parameters()))


def test_a_stage_1_encoder_loads_by_name():
    """Blocks and names are those of the dilated encoder, so that its weights serve here too; the
    base learner's other parts are passed over."""
    base = build_model(configuration(arch="PSPNet", stem="deep"))
    model = build(stem="deep", seed=5)
    report = load_weights(model, base.state_dict())
    assert {name.split(".")[0] for name in report.passed_over} == {"head", "base_learner"}
    theirs, ours = base.encoder.state_dict(), model.encoder.state_dict()
    assert set(theirs) == set(ours)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.parametrize("kernel4d", ["separable", "full"])
def test_other_kernels_run_in_both_forms(kernel4d):
    fast, textbook = twins(kernel4d=kernel4d, pyramid=[16, 32])
    assert_same(fast, textbook, episodes(batch=1, query=(32, 32), support=(64, 64)))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"pyramid": (4, 8)}, "pyramid"),
        ({"pyramid": ()}, "pyramid"),
        ({"hyper_layers": "first"}, "hyper_layers"),
        ({"kernel4d": "cubic"}, "kernel4d"),
    ],
)
def test_impossible_options_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        HSNet(BACKBONES["resnet18"]("7x7", 4), **options)


def test_an_unknown_form_is_named():
    with pytest.raises(ValueError, match="compute"):
        build(compute="slow")


def test_a_fine_tuned_backbone_learns_at_its_share_and_keeps_its_statistics():
    """The same output as the frozen one; gradients reach its first layer in either form."""
    data = episode((64, 64))
    frozen = build()
    for compute in ("fast", "textbook"):
        model = build(backbone_lr=0.01, compute=compute)
        assert torch.equal(run(model, data).final, run(build(compute="textbook"), data).final)
        groups = {group["name"]: group for group in model.param_groups(SimpleNamespace())}
        assert {name: group["lr_scale"] for name, group in groups.items()} == {
            "HSNet": 1.0, "backbone": 0.01,
        }  # fmt: skip
        model.train()
        assert not any(part.training for part in model.encoder.modules())
        statistics = {n: t.clone() for n, t in model.encoder.named_buffers()}
        total(model.losses(run(model, data, training=True), data["query_mask"], None)).backward()
        first = next(model.encoder.parameters())
        assert first.grad is not None and first.grad.abs().sum() > 0
        for name, buffer in model.encoder.named_buffers():
            assert torch.equal(buffer, statistics[name])
    assert [group["name"] for group in frozen.param_groups(SimpleNamespace())] == ["HSNet"]
    assert not any(p.requires_grad for p in frozen.encoder.parameters())
