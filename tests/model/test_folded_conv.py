"""The forms of a folded convolution against torch's own, with shortcut and ReLU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from benchmark.measure import operations
from model.fast.cpu import folded_conv, winograd
from model.fast.cpu.folded_conv import RECENT, SHAPES, FoldedConv, Options, fold, packs
from model.fast.prior import products
from model.layers import ConvNorm

pytestmark = pytest.mark.numeric

CL = torch.channels_last
LIMIT = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 0.03}
FORMS = [(1, {}), (1, {"stride": 2}), (3, {"padding": 1}), (3, {"padding": 0}),
         (3, {"padding": 2, "dilation": 2}), (3, {"padding": 1, "stride": 2}),
         (3, {"padding": 1, "groups": 4})]  # fmt: skip


def folded(inputs, outputs, kernel, dtype=torch.float32, **options):
    make = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(inputs, outputs, kernel, **options)
    shape = conv.weight.shape
    weight = torch.randn(shape, generator=make) / (kernel * inputs**0.5)
    bias = torch.randn(outputs, generator=make)
    return FoldedConv(
        weight.to(dtype).contiguous(memory_format=CL), bias.to(dtype), Options.of(conv)
    )


def reference(conv: FoldedConv, x, shortcut, rectify):
    found = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), *conv.options)
    found = found if shortcut is None else found + shortcut.double()
    return found.relu() if rectify else found


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from(list(LIMIT)),
    st.sampled_from(FORMS),
    st.sampled_from(["own choice", "torch's", "Winograd's"]),
    st.lists(st.tuples(st.integers(1, 2), st.integers(3, 30), st.integers(3, 30)),
             min_size=1, max_size=4),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)  # fmt: skip
def test_equals_the_convolution(dtype, form, way, sizes, last, add, rectify):
    """For inputs of several sizes, one after the other and again; every way to compute it."""
    kernel, options = form
    with pytest.MonkeyPatch.context() as patch:
        if way == "torch's":
            patch.setattr(folded_conv, "packs", lambda x: False)
        if way == "Winograd's":
            patch.setattr(winograd, "CHANNELS", 1)
            patch.setattr(winograd, "OUTPUTS", 0)
        check(dtype, kernel, options, sizes, last, add, rectify)


def check(dtype, kernel, options, sizes, last, add, rectify):
    conv = folded(8, 12, kernel, dtype, **options)
    make = torch.Generator().manual_seed(1)
    for batch, height, width in sizes + sizes:
        x = torch.randn(batch, 8, height, width, generator=make).to(dtype)
        x = x.contiguous(memory_format=CL) if last else x
        shortcut = torch.randn(reference(conv, x, None, False).shape, generator=make).to(dtype)
        shortcut = shortcut if add else None
        expected = reference(conv, x, shortcut, rectify)
        before = x.clone()
        with torch.inference_mode():
            found = conv(x, shortcut, rectify)
        assert found.dtype == dtype and torch.equal(x, before)
        assert (found.double() - expected).abs().max() <= LIMIT[dtype] * (1 + expected.abs().max())


@torch.no_grad()
@pytest.mark.skipif(not packs(torch.zeros(1)), reason="this torch has no oneDNN")
def test_laid_out_weights_are_kept_for_few_shapes():
    conv = folded(8, 12, 1)

    def sides() -> set[int]:
        return {shape[2] for shape in conv._layouts}

    def ask(side: int) -> None:
        conv(torch.randn(1, 8, side, side))
        assert len(sides()) <= SHAPES and side in sides()

    for side in (5, 6, 5, 7, 8, 9, 5):  # 5 comes again, the others do not
        ask(side)
        assert 5 in sides()
    for picture in (5, 6):  # pictures of another size after some time
        for number in range(200):
            ask(7 + number % 20)  # supports, whose shapes hardly come again
            kept = sides()
            ask(picture)
            # From the second time on it needs no new layout; the former size is forgotten.
            assert picture in kept or number < (2 if picture == 5 else RECENT)
    kept = conv._packed(torch.empty(1, 8, 6, 6))
    assert conv._packed(torch.empty(1, 8, 6, 6)) is kept
    assert len(conv._asked) <= RECENT


@pytest.mark.parametrize("bias", [False, True])
def test_a_batch_norm_is_folded_in(bias):
    torch.manual_seed(0)
    layer = ConvNorm(4, 6, 3, padding=1, bias=bias).double().eval()
    for values in (layer.bn.running_mean, layer.bn.weight.data, layer.bn.bias.data):
        values.normal_()
    layer.bn.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(fold(layer, x.dtype)(x), layer(x), rtol=0, atol=1e-12)


def test_what_oneDNN_computes_is_counted():  # noqa: N802
    x, shortcut = torch.randn(1, 8, 9, 9), torch.randn(1, 12, 5, 5)
    conv, same = folded(8, 12, 3, padding=1, stride=2), folded(8, 8, 3, padding=1, groups=4)
    with torch.inference_mode():
        assert operations(lambda: conv(x)) == 2 * 12 * 25 * 8 * 9
        assert operations(lambda: conv(x, shortcut, True)) == 2 * 12 * 25 * 8 * 9
        assert operations(lambda: same(x)) == 2 * 8 * 81 * 2 * 9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch, places", [(1, 7), (3, 1), (2, 5)])
def test_products_of_features(dtype, batch, places):
    torch.manual_seed(0)
    query, support = torch.randn(batch, 20, 16), torch.randn(batch, places, 16)
    found = products(query.to(dtype), support.to(dtype))
    expected = torch.einsum("bnc,bmc->bnm", query.double(), support.double())
    assert found.shape == expected.shape and found.dtype == dtype
    assert torch.allclose(found.double(), expected, atol=1e-4)
