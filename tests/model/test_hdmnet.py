"""HDMNet's two forms agree; options, frozen parts and sizes behave as documented."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from model.fast import matching as tiled
from model.fast.positions import Places
from model.fast.prior import prior_at_positions
from model.fewshot import join, join_shots, total
from model.matching import MATCHERS
from model.prior import prior_mask
from tests.models import build, episode, options, run, twins, without_dropout

pytestmark = pytest.mark.numeric


def gradients(model, data):
    out = run(without_dropout(model).train(), data, training=True)
    total(model.losses(out, data["query_mask"], data["base_mask"])).backward()
    return out, {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def assert_same(a, b, tolerance):
    scale = max(b.abs().max().item(), 1e-12)
    assert (a - b).abs().max().item() <= tolerance * max(scale, 1.0)


def assert_twins_agree(fast, textbook, data):
    with torch.no_grad():
        ours, theirs = run(fast, data), run(textbook, data)
    for a, b in zip(ours, theirs, strict=True):
        if isinstance(a, torch.Tensor):
            assert torch.isfinite(a).all()
            assert_same(a, b, 1e-9)
    for a, b in zip(ours.correlations, theirs.correlations, strict=True):
        assert_same(a, b, 1e-9)
    _, ours = gradients(fast, data)
    _, theirs = gradients(textbook, data)
    for name in theirs:
        assert_same(ours[name], theirs[name], 1e-7)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    height=st.integers(33, 90),
    width=st.integers(33, 90),
    shot=st.integers(1, 5),
    batch=st.integers(1, 4),
    share=st.sampled_from([0.002, 0.08, 0.4, 1.0]),
    seed=st.integers(0, 99),
)
def test_fast_equals_textbook(height, width, shot, batch, share, seed):
    fast, textbook = twins(seed, shot=shot)
    data = episode((height, width), batch, shot, seed, share, torch.float64)
    # one sample's first support has no object at all
    data["support_masks"][0, 0] = 0
    assert_twins_agree(fast, textbook, data)


@pytest.mark.parametrize(
    "changes",
    [
        {"stages": 1},
        {"stages": 2, "matching": "attention"},
        {"stages": 4, "hierarchy": "stacked"},
        {"hierarchy": "stacked", "matching": "attention", "shot": 3},
        {"ensemble": False, "distill": False},
        {"block_relu": False, "stem": "7x7"},
        {"mask_support": False},
        {"backbone": "vgg16"},
        {"backbone": "resnet50", "temperature": 2.0},
        {"fidelity": "corrected", "shot": 4},
    ],
    ids=str,
)
def test_options(changes):
    fast, textbook = twins(3, **changes)
    size = (113, 97) if changes.get("backbone") == "vgg16" else (65, 81)
    data = episode(size, 2, changes.get("shot", 1), 5, 0.1, torch.float64)
    data["support_masks"][1, 0] = 0
    assert_twins_agree(fast, textbook, data)


def test_every_option_changes_the_result():
    data = episode((65, 65), 1, 1, 1)
    reference = build(0)
    with torch.no_grad():
        expected = run(reference, data).final
        for changes in (
            {"matching": "attention"},
            {"hierarchy": "stacked"},
            {"block_relu": False},
            {"mask_support": False},
        ):
            other = build(0, **changes)
            other.load_state_dict(reference.state_dict())
            assert not torch.allclose(run(other, data).final, expected), changes


def test_no_object_is_defined_and_follows_the_equations():
    model = build(0)
    data = episode((65, 65), 2, 2, 1)
    data["support_masks"][:] = 0
    with torch.no_grad():
        out = run(model, data)
    assert torch.isfinite(out.final).all()
    assert (out.prior == 0).all()
    assert all((c == 0).all() for c in out.correlations)


def test_ignored_pixels_are_not_object():
    model = build(0)
    data = episode((65, 65), 1, 1, 1)
    with torch.no_grad():
        expected = run(model, data).final
        data["support_masks"][data["support_masks"] == 0] = 255
        assert torch.equal(run(model, data).final, expected)


@pytest.mark.parametrize("matching", ["correlation", "attention"])
@pytest.mark.parametrize("count", [1, 10, 17, 41])
def test_matching_in_tiles(matching, count, monkeypatch):
    monkeypatch.setattr(tiled, "COLUMNS", 10)
    monkeypatch.setattr(tiled, "CPU_ELEMENTS", 1)
    generator = torch.Generator().manual_seed(count)
    query = torch.randn(2, 2, 50, 4, generator=generator, dtype=torch.float64)
    key, value = torch.randn(2, 2, 2, count, 4, generator=generator, dtype=torch.float64)
    valid = torch.rand(2, count, generator=generator) < 0.5
    valid[1] = False
    results = []
    textbook = MATCHERS[matching]
    for form in (tiled.FASTER[textbook], textbook):
        leaves = [t.clone().requires_grad_() for t in (query, key, value)]
        out, mean = form(*leaves, valid)
        (out.sin().sum() + mean.cos().sum()).backward()
        results.append([out, mean, *(leaf.grad for leaf in leaves)])
    for a, b in zip(*results, strict=True):
        assert_same(a.detach(), b.detach(), 1e-10)


def test_a_matcher_of_ones_own_needs_no_faster_form(monkeypatch):
    def uniform(query, key, value, valid):
        weight = valid[:, None, :, None].to(value.dtype)
        weight = weight / weight.sum(dim=2, keepdim=True).clamp(min=1)
        key, value = ((each * weight).sum(dim=2, keepdim=True) for each in (key, value))
        return query + value, (query * key).sum(dim=3).mean(dim=1)

    monkeypatch.setitem(MATCHERS, "uniform", uniform)
    fast, textbook = twins(0, matching="uniform")
    assert_twins_agree(fast, textbook, episode((65, 65), 2, 2, 3, 0.2, torch.float64))


def test_inverse_softmax_by_hand():
    """One head, one dimension: every column of cosines is normalised over the query positions."""
    query = torch.tensor([[[[1.0], [-2.0]]]])
    key = torch.tensor([[[[3.0], [-1.0]]]])
    value = torch.tensor([[[[5.0], [7.0]]]])
    valid = torch.tensor([[True, False]])
    textbook = MATCHERS["correlation"]
    for form in (tiled.FASTER[textbook], textbook):
        out, mean = form(query, key, value, valid)
        high, low = torch.tensor([10.0, -10.0]).softmax(0) * 5
        assert torch.allclose(out.flatten(), torch.stack([high, low]))
        assert torch.allclose(mean.flatten(), torch.tensor([10.0, -10.0]))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_prior_at_positions(data):
    """Objects of unequal sizes side by side, none and whole pictures among them."""
    batch, shots, cells = (data.draw(st.integers(1, most)) for most in (3, 3, 40))
    counts = data.draw(st.lists(st.integers(0, cells), min_size=batch * shots,
                                max_size=batch * shots))  # fmt: skip
    counts = torch.tensor(counts).view(batch, shots)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    query = torch.randn(batch, 9, 5, generator=generator, dtype=torch.float64)
    support = torch.randn(batch, shots, cells, 5, generator=generator, dtype=torch.float64)
    support *= (torch.arange(cells) < counts[:, :, None])[..., None]
    ours = prior_at_positions(query, support[:, :, : max(1, counts.max())], counts < cells)
    maps = query.mT[..., None], support.mT[..., None]  # of one column
    assert_same(ours, prior_mask(*maps)[..., 0], 1e-12)


def test_prior_in_float16_does_not_overflow():
    query, support = torch.full((1, 4, 2048), 9.0), torch.full((1, 1, 3, 2048), 11.0)
    outside = torch.ones(1, 1, dtype=torch.bool)
    prior = prior_at_positions(query.half(), support.half(), outside)
    assert torch.allclose(prior, torch.ones(1, 4))


def test_encodings_can_be_kept_and_joined():
    """Separate encoding, ragged joining and matching give the forward pass's result."""
    model = build(0, shot=2).double()
    data = episode((65, 65), 2, 2, 3, dtype=torch.float64)
    data["support_masks"][0, 0, :40] = 1
    with torch.no_grad():
        expected = run(model, data)
        queries = [model.prepare_query(model.encode_query(q[None])) for q in data["query_image"]]
        supports = [
            [
                model.prepare_support(model.encode_support(i[None], m[None]))
                for i, m in zip(images, masks, strict=True)
            ]
            for images, masks in zip(data["support_images"], data["support_masks"], strict=True)
        ]
        out = model.match(join(queries), join_shots(supports), (65, 65))
    assert_same(out.final, expected.final, 1e-12)
    assert_same(out.correlations[0], expected.correlations[0], 1e-10)


def test_any_number_of_supports_without_retraining():
    model = build(0, shot=5)
    data = episode((65, 65), 1, 3, 3)
    with torch.no_grad():
        assert torch.isfinite(run(model, data).final).all()


@pytest.mark.parametrize("ensemble", [True, False])
def test_a_support_given_five_times_says_what_it_says_once(ensemble):
    """In a model of one shot: the sum over the supports' positions is brought to one's."""
    data = episode((65, 65), 1, 1, 3, dtype=torch.float64)
    again = {key: data[key].repeat_interleave(5, 1) for key in ("support_images", "support_masks")}
    for model in twins(0, shot=1, ensemble=ensemble):
        with torch.no_grad():
            once, five = run(model, data), run(model, data | again)
        assert_same(five.final, once.final, 1e-9)
        assert_same(five.correlations[0], once.correlations[0], 1e-9)


def test_learnable_parameters_as_published():
    model = build(0, backbone="resnet50", width=64, num_base=15)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    inner = (model.pyramid, model.matching, model.decoder)
    assert count == 4_161_734
    assert sum(p.numel() for part in inner for p in part.parameters()) == 3_309_634
    groups = model.param_groups(options())
    assert sum(p.numel() for group in groups for p in group["params"]) == count


def test_learning_rate_of_the_fusion():
    model = build(0)
    fusion = {id(model.ensemble.gram_merge.weight), id(model.ensemble.base_merge.weight)}
    published, slow = model.param_groups(options()), model.param_groups(options(fusion_lr=0.5))
    assert [group["lr_scale"] for group in published] == [1.0, 10.0]
    assert fusion <= {id(p) for p in published[1]["params"]}
    assert {id(p) for p in slow[2]["params"]} == fusion and slow[2]["lr_scale"] == 0.5
    parts = [sum(p.numel() for group in g for p in group["params"]) for g in (published, slow)]
    assert parts[0] == parts[1]


def test_reweighting_network_is_optimised_only_when_corrected():
    for fidelity, expected in (("released", False), ("corrected", True)):
        model = build(0, shot=5, fidelity=fidelity)
        chosen = {id(p) for group in model.param_groups(options()) for p in group["params"]}
        assert all((id(p) in chosen) is expected for p in model.ensemble.reweight.parameters())


@pytest.mark.parametrize("fix_bn", [True, False])
def test_train_mode(fix_bn):
    model = build(0, fix_bn=fix_bn).train()
    data = episode((65, 65), 2, 1, 3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    losses = model.losses(run(model, data, training=True), data["query_mask"], data["base_mask"])
    total(losses).backward()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert bool(changed) is not fix_bn
    assert not any(name.startswith(model.frozen) for name in changed)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) is parameter.requires_grad, name
        assert parameter.requires_grad is not name.startswith(model.frozen)
    assert not model.encoder.training and not model.base_learner.training


def test_losses_are_weighted():
    model = build(0, aux_weight1=0.5, aux_weight2=0.25)
    data = episode((65, 65), 1, 1, 3)
    losses = model.losses(run(model, data), data["query_mask"], data["base_mask"])
    main, meta, distill, base = (losses[n].value for n in ("main", "meta", "distill", "base"))
    assert torch.allclose(total(losses), main + meta + 0.5 * distill + 0.25 * base)
    assert {name for name, loss in losses.items() if loss.over == "samples"} == {"distill"}
    assert "base" not in model.losses(run(model, data), data["query_mask"], None)


@pytest.mark.parametrize("changes", [{}, {"backbone": "vgg16"}, {"stages": 1}, {"stages": 4}])
def test_smallest_size_is_named_and_works(changes):
    model = build(0, **changes)
    with pytest.raises(ValueError, match="at least") as error:
        model.check_size(5, 200)
    smallest = int(str(error.value).rsplit(" ", 1)[1])
    data = episode((smallest, smallest), 1, 1, 3)
    with torch.no_grad():
        assert torch.isfinite(run(model, data).final).all()
    with pytest.raises(ValueError, match="too small"):
        model.check_size(smallest - 1, smallest - 1)


def test_autocast_keeps_the_prediction():
    model = build(0)
    data = episode((97, 97), 1, 1, 3)
    with torch.no_grad():
        expected = run(model, data)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = run(model, data)
    assert out.final.dtype == torch.float32
    assert (out.prior - expected.prior).abs().max() < 0.02
    agree = (out.meta.argmax(1) == expected.meta.argmax(1)).float().mean()
    assert agree > 0.95


@pytest.mark.filterwarnings("ignore")  # of torch, which finds no GPU and sees addresses asked for
@pytest.mark.parametrize("training", [True, False])
def test_nothing_waits_for_a_gpu(training, monkeypatch):
    """On tensors of a GPU that have no values: whoever asked for one would wait for the GPU."""
    model = build(0, shot=2)
    data = episode((65, 65), 2, 2)
    with FakeTensorMode(allow_non_fake_inputs=True):
        device = torch.device("cuda")

        def there(tensor):
            return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)

        monkeypatch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
        model._apply(there).train(training)
        model.derive()
        data = {name: there(tensor) for name, tensor in data.items()}
        if not training:
            data["support_masks"] = torch.empty(2, 2, 65, 65, dtype=torch.uint8)
            monkeypatch.setattr("model.fast.hdmnet.object_places", places_on_the_host)
        with torch.set_grad_enabled(training):
            out = run(model, data, training)
            loss = total(model.losses(out, data["query_mask"], data["base_mask"]))
        assert out.final.device.type == loss.device.type == "cuda"


def places_on_the_host(mask, count):
    assert count and mask.device.type == "cpu"
    shape = (mask.shape[0], 9)
    return Places(torch.zeros(shape, dtype=torch.long), torch.ones(shape, dtype=torch.bool))


@pytest.mark.parametrize("matching", MATCHERS)
def test_a_support_given_three_times_says_what_it_says_once(matching):
    """Otherwise a one-shot model would be asked about sums that it never saw in training."""
    for model in twins(0, matching=matching):
        data = episode((65, 65), 1, 1, 3, 0.3, torch.float64)
        thrice = {
            **data,
            "support_images": data["support_images"].repeat(1, 3, 1, 1, 1),
            "support_masks": data["support_masks"].repeat(1, 3, 1, 1),
        }
        with torch.no_grad():
            assert_same(run(model, thrice).final, run(model, data).final, 1e-9)
