"""What is computed from weights once is never used with other weights, saved, or copied."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from model import build_model
from model.fast.derived import Derives
from model.fewshot import total
from tests.models import build, episode, options, run, twins
from tests.parity import relative_error
from util.weights.checkpoint import load_weights

DATA = episode((65, 81), dtype=torch.float64)


def parts(model):
    return [part for part in model.modules() if isinstance(part, Derives)]


def holds(model) -> list[bool]:
    """Which parts keep something at the moment."""
    return [bool(part.kept._found) for part in parts(model)]


@torch.no_grad()
def agree(fast, data=DATA) -> bool:
    """Whether the fast form gives what the textbook form gives with the weights that it has now."""
    textbook = build(compute="textbook").to(next(fast.parameters()).dtype)
    textbook.load_state_dict(fast.state_dict())
    a, b = run(fast, data), run(textbook, data)
    return relative_error(a.final, b.final.double().numpy()) < 1e-9


@pytest.fixture
def warm():
    """A fast model that has derived and used everything."""
    model = twins()[0]
    assert agree(model) and all(holds(model))
    return model


def changed(model, names=()):
    """Another state dict for ``model``, differing in every tensor or in those named."""
    other = build(9).double().state_dict()
    other = {k: v for k, v in other.items() if k.startswith(tuple(names) or "")}
    return {**model.state_dict(), **other}


LOADS = {
    "the whole": lambda m: m.load_state_dict(changed(m)),
    "by assignment": lambda m: m.load_state_dict(changed(m), assign=True),
    "not strictly": lambda m: m.load_state_dict(changed(m, ["decoder"]), strict=False),
    "one part": lambda m: m.encoder.load_state_dict(build(9).double().encoder.state_dict()),
    "one layer": lambda m: m.decoder.head[0].bn.load_state_dict(
        build(9).double().decoder.head[0].bn.state_dict()
    ),
    "a weight file": lambda m: load_weights(m, changed(m)),
    "by hand, and told": lambda m: (m.decoder.head[0].conv.weight.data.mul_(2), m.derive()),
}


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_loading_renews_what_is_kept(warm, load):
    load(warm.eval())
    assert agree(warm)


def test_nothing_is_kept_before_it_is_asked_for():
    model = build().double()
    assert agree(model) and not any(holds(model))
    model.decoder.head[0].conv.weight.data.mul_(2)
    model.encoder.layer1[0].conv1.bn.bias.data.add_(0.5)
    assert agree(model)


def test_training_ends_it_for_what_learns(warm):
    frozen = [part in (warm.encoder, warm.head) for part in parts(warm)]
    optimizer = torch.optim.SGD(warm.param_groups(options()), lr=0.5)
    warm.train()
    assert holds(warm) == frozen
    warm.derive()  # refused where it learns
    total(warm.losses(run(warm, DATA, training=True), DATA["query_mask"], None)).backward()
    optimizer.step()
    warm.eval()
    assert agree(warm) and holds(warm) == frozen
    warm.derive()
    assert agree(warm) and all(holds(warm))


def test_training_in_evaluation_mode_ends_it_too(warm):
    optimizer = torch.optim.SGD(warm.param_groups(options()), lr=0.5)
    loss = total(warm.losses(run(warm, DATA), DATA["query_mask"], None))
    with torch.no_grad():
        run(warm, DATA)  # between the pass that gives gradients and the step
    loss.backward()
    optimizer.step()
    assert agree(warm)


def test_statistics_that_a_frozen_part_gathers_in_training_mode_count(warm):
    with torch.no_grad():
        warm.encoder.train()
        warm.encoder(DATA["query_image"])
        warm.encoder.eval()
    assert agree(warm)


def test_gradients_reach_the_picture():
    fast, textbook = twins()
    found = []
    for model in (fast, textbook):
        image = DATA["query_image"].clone().requires_grad_()
        f2, f3, f4 = model.encoder(image)
        model.head(f4).square().sum().backward()
        found.append(image.grad)
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


def test_other_types_and_back(warm):
    single = episode((65, 81))
    expected = run(warm, DATA).final.detach()
    with torch.no_grad():
        out = run(warm.float(), single).final
        assert out.dtype == torch.float32 and relative_error(out, expected.numpy()) < 1e-4
        with torch.autocast("cpu", torch.bfloat16):
            half = run(warm, single).final
        assert relative_error(half, expected.numpy()) < 0.1
        assert torch.equal(run(warm, single).final, out)  # each type has its own
    assert agree(warm.double())  # rounded once: not what was derived before


def test_copies_and_saved_states_hold_weights_only(warm):
    names = set(warm.state_dict())
    for same in (copy.deepcopy(warm), pickle.loads(pickle.dumps(warm))):
        assert not any(holds(same)) and set(same.state_dict()) == names
        assert agree(same) and all(holds(same))
        same.load_state_dict(changed(same))
        assert agree(same) and agree(warm)
    # A copy notices what is loaded into it, and the original does not.
    other = copy.deepcopy(warm)
    other.decoder.load_state_dict(build(9).double().decoder.state_dict())
    assert all(holds(warm)) and agree(other)


def test_a_model_built_in_inference_mode():
    with torch.inference_mode():
        torch.manual_seed(0)
        model = build_model(options()).double().eval()
        model.derive()
        inside = run(model, DATA).final
    with torch.no_grad():
        assert torch.equal(run(model, DATA).final, inside)


def test_threads_share_it():
    model, textbook = twins()
    with torch.no_grad():
        expected = run(textbook, DATA).final

    def ask(_) -> torch.Tensor:
        with torch.inference_mode():
            return run(model, DATA).final

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(ask, range(8)):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
