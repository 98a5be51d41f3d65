"""4D convolutions: against brute force, against each other, and their efficient form."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from model.conv4d import CenterPivotConv4d, FullConv4d, SeparableConv4d, window
from model.fast.conv4d import (
    center_pivot,
    from_kernel_rows,
    kernel_rows,
    norm_relu,
    sparse_center_pivot,
)

pytestmark = pytest.mark.numeric

CASES = [(3, 1), (3, 2), (5, 4)]  # kernel, stride


def brute_force(x, weight, bias, stride):
    """The definition of a 4D convolution: a sum over k⁴ shifted copies of the padded input."""
    k = weight.shape[-1]
    padded = F.pad(x, [k // 2] * 8)
    hq, wq, hs, ws = x.shape[2:]
    y = bias.view(1, -1, 1, 1, 1, 1)
    for a, b, c, d in itertools.product(range(k), repeat=4):
        shifted = padded[:, :, a : a + hq, b : b + wq, c : c + hs : stride, d : d + ws : stride]
        y = y + torch.einsum("oi,bi...->bo...", weight[:, :, a, b, c, d], shifted)
    return y


def hypercorrelation(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("kernel", "stride"), CASES)
def test_full_kernel_is_the_definition(kernel, stride):
    torch.manual_seed(0)
    conv = FullConv4d(2, 3, kernel, stride).double()
    x = hypercorrelation(2, 2, 4, 3, 6, 5)
    expected = brute_force(x, conv.weight, conv.bias, stride)
    torch.testing.assert_close(conv(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kernel", "stride"), CASES)
def test_center_pivot_is_a_full_kernel_that_is_zero_off_the_pivots(kernel, stride):
    torch.manual_seed(0)
    conv = CenterPivotConv4d(2, 3, kernel, stride).double()
    weight = torch.zeros(3, 2, *[kernel] * 4, dtype=torch.float64)
    middle = kernel // 2
    weight[..., middle, middle] += conv.conv1.weight
    weight[:, :, middle, middle] += conv.conv2.weight
    x = hypercorrelation(2, 2, 4, 3, 6, 5)
    expected = brute_force(x, weight, conv.conv1.bias + conv.conv2.bias, stride)
    torch.testing.assert_close(conv(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kernel", "stride"), CASES)
def test_separable_is_a_full_kernel_of_products(kernel, stride):
    torch.manual_seed(0)
    conv = SeparableConv4d(2, 3, kernel, stride).double()
    nn.init.zeros_(conv.conv2.bias)  # the query convolution's padding does not see this bias
    weight = torch.einsum("omab,micd->oiabcd", conv.conv1.weight, conv.conv2.weight)
    x = hypercorrelation(2, 2, 4, 3, 6, 5)
    expected = brute_force(x, weight, conv.conv1.bias, stride)
    torch.testing.assert_close(conv(x), expected, rtol=1e-12, atol=1e-12)


@given(
    kernel=st.sampled_from([1, 3, 5, 7]),
    stride=st.integers(1, 5),
    size=st.integers(1, 12),
    tap=st.integers(0, 6),
)
def test_window_lists_exactly_the_inputs_that_exist(kernel, stride, size, tap):
    offset = tap % kernel - kernel // 2
    outputs = -(-size // stride)
    expected = [(o, o * stride + offset) for o in range(outputs) if 0 <= o * stride + offset < size]
    to, source = window(offset, stride, size, outputs)
    pairs = zip(range(outputs)[to], range(size)[source], strict=True)
    assert list(pairs) == expected


def to_fast(x):
    """Textbook order of dimensions -> that of the efficient form."""
    return x.permute(0, 4, 5, 1, 2, 3).contiguous()


def gradients(y, seed, *inputs):
    return torch.autograd.grad((y * hypercorrelation(*y.shape, seed=seed)).sum(), inputs)


@pytest.mark.parametrize(("kernel", "stride"), CASES)
@pytest.mark.parametrize("normalised", [False, True])
def test_efficient_form_equals_the_textbook(kernel, stride, normalised):
    torch.manual_seed(0)
    conv = CenterPivotConv4d(8, 3, kernel, stride).double()
    norm = nn.GroupNorm(4, 8).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (hypercorrelation(2, 8, 4, 3, 6, 5) + 0.7).requires_grad_()
    parameters = [*conv.parameters(), *(norm.parameters() if normalised else ())]

    textbook = to_fast(conv(F.relu(norm(x)) if normalised else x))
    fast = center_pivot(to_fast(x), conv, norm if normalised else None)
    torch.testing.assert_close(fast, textbook, rtol=1e-12, atol=1e-12)
    for a, b in zip(
        gradients(fast, 1, x, *parameters), gradients(textbook, 1, x, *parameters), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_norm_relu_equals_torch():
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, 8).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (3 + hypercorrelation(2, 2, 3, 8, 4, 5)).requires_grad_()
    expected = F.relu(norm(x.permute(0, 3, 1, 2, 4, 5))).permute(0, 2, 3, 1, 4, 5)
    y = norm_relu(x, norm)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    inputs = (x, *norm.parameters())
    for a, b in zip(gradients(y, 1, *inputs), gradients(expected, 1, *inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_norm_relu_in_float32_keeps_its_digits_far_from_zero():
    """Statistics are taken about the mean, so that a large mean costs no digits."""
    norm = nn.GroupNorm(4, 8)
    x = 300 + hypercorrelation(1, 2, 3, 8, 4, 5).float()
    expected = F.relu(norm.double()(x.double().permute(0, 3, 1, 2, 4, 5)))
    y = norm_relu(x, norm.float())
    assert (y.double() - expected.permute(0, 2, 3, 1, 4, 5)).abs().max() < 2e-4


def test_gradients_by_finite_differences():
    torch.manual_seed(0)
    conv = CenterPivotConv4d(4, 2, 3, 2).double()
    norm = nn.GroupNorm(4, 4).double()
    x = hypercorrelation(1, 3, 2, 4, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: center_pivot(x, conv, norm), (x,))
    assert torch.autograd.gradcheck(lambda x: norm_relu(x, norm), (x,))


@settings(deadline=None, max_examples=60)
@given(data=st.data(), case=st.sampled_from(CASES))
def test_sparse_form_for_any_set_of_positions(data, case):
    """Outputs and weight gradients, for sets of positions with holes, empty and full."""
    kernel, stride = case
    grid = data.draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    area = grid[0] * grid[1]
    listed = [
        sorted(data.draw(st.sets(st.integers(0, area - 1)) | st.just(set(range(area)))))
        for _ in range(2)
    ]
    torch.manual_seed(0)
    conv = CenterPivotConv4d(2, 3, kernel, stride).double()
    x = torch.zeros(2, area, 2, 3, 4, dtype=torch.float64)
    for image, positions in zip(x, listed, strict=True):
        image[positions] = hypercorrelation(len(positions), 2, 3, 4)
    maps = [image[positions] for image, positions in zip(x, listed, strict=True)]
    fast = sparse_center_pivot(maps, listed, grid, conv)
    textbook = to_fast(conv(x.unflatten(1, grid).permute(0, 3, 4, 5, 1, 2)))
    torch.testing.assert_close(fast, textbook, rtol=1e-12, atol=1e-12)
    inputs = tuple(conv.parameters())
    for a, b in zip(gradients(fast, 1, *inputs), gradients(textbook, 1, *inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_kernel_rows_and_back():
    weight = torch.randn(3, 2, 5, 5)
    rows = kernel_rows(weight)
    assert rows.shape == (5, 3, 10)
    assert torch.equal(rows[1, 2].view(5, 2)[4], weight[2, :, 1, 4])
    assert torch.equal(from_kernel_rows(rows, weight), weight)
