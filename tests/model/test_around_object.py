"""Supports encoded around their object only, against the encoder on the whole picture."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.fast.cpu import around_object
from model.fast.cpu.around_object import AroundObject, Box, EmptyPicture
from model.fast.steps import run
from tests.models import build

pytestmark = pytest.mark.numeric

CL = torch.channels_last
CASES = [
    {"backbone": "resnet18", "stem": "7x7"},
    {"backbone": "resnet50"},
    {"backbone": "resnet50", "block_relu": False},
    {"backbone": "vgg16"},
]


def encoder_of(case):
    """Small, with batch norms that shift: an empty picture's features are not zero."""
    encoder = build(0, **case).double().encoder
    make = torch.Generator().manual_seed(1)
    for norm in (m for m in encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        for values in (norm.running_mean, norm.bias.data):
            values.copy_(0.3 * torch.randn(values.shape, generator=make))
    encoder.derive()
    return encoder


def picture(height, width, box):
    mask = torch.zeros(1, height, width, dtype=torch.uint8)
    mask[:, box.top : box.bottom, box.left : box.right] = 1
    make = torch.Generator().manual_seed(height * width)
    image = torch.randn(1, 3, height, width, dtype=torch.float64, generator=make)
    return (image * mask[:, None]).contiguous(memory_format=CL), mask


ENCODERS = [encoder_of(case) for case in CASES]
share = st.floats(0, 1)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from(ENCODERS),
    st.tuples(st.integers(33, 420), st.integers(33, 420)),
    st.tuples(share, share),
    st.tuples(st.floats(0, 0.5), st.floats(0, 0.5)),
)
def test_same_features_as_of_the_whole_picture(encoder, size, corner, extent):
    bounds = []
    for n, start, part in zip(size, corner, extent, strict=True):
        first = int(start * (n - 1))
        bounds += [first, min(n, first + 1 + int(part * n))]
    image, mask = picture(*size, Box(*bounds))
    with torch.inference_mode():
        found, expected = encoder.around(image, mask), encoder(image)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and a.is_contiguous(memory_format=CL)
        assert (a - b).norm() <= 1e-12 * b.norm()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_change_reaches_as_far_as_a_step_says(case):
    """A 2×2 pool reaches one cell to one side only: at most one cell too many."""
    encoder = encoder_of(case)
    steps = encoder.steps(torch.float64)
    make = torch.Generator().manual_seed(0)
    stack = [torch.rand(1, 3, 60, 73, dtype=torch.float64, generator=make)]
    for step in steps:
        for number in range(step.takes):
            taken = [
                torch.rand(1, x.shape[1], 60, 73, dtype=torch.float64, generator=make)
                for x in stack[-step.takes :]
            ]
            changed = [x.clone() for x in taken]
            changed[number][:, :, 24:26, 41] += 5
            with torch.inference_mode():
                before, after = (step.run(*[x.clone() for x in xs]) for xs in (taken, changed))
            differ = sum((a != b)[0].any(0) for a, b in zip(before, after, strict=True))
            rows, columns = differ.nonzero(as_tuple=True)
            found = (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1)
            told = Box(24, 26, 41, 42).reached(step, before[0].shape[2:])
            more = (found[0] - told.top, told.bottom - found[1], found[2] - told.left,
                    told.right - found[3])  # fmt: skip
            # A block's end takes an inner map, which reaches that far, and a shortcut.
            reaches = number == step.takes - 1
            assert set(map(int, more)) <= {0, 1} if reaches else min(more) >= 0
        stack[-step.takes :] = before
    assert len(stack) == 1


def test_only_the_surroundings_are_computed():
    areas, whole = [], []
    steps = encoder_of(CASES[1]).steps(torch.float64)

    def watched(step, areas):
        def run(*maps, **options):
            areas.append(maps[0].shape[2] * maps[0].shape[3])
            return step.run(*maps, **options)

        return step._replace(run=run)

    image, mask = picture(400, 400, Box(100, 150, 200, 250))
    with torch.inference_mode():
        run([image], [watched(s, whole) for s in steps])
        encode = AroundObject([watched(s, areas) for s in steps], torch.float64)
        encode(image, mask)  # the empty picture too
        areas.clear()
        encode(image, mask)
    shares = [a / b for a, b in zip(areas, whole, strict=True)]
    taps = [number for number, step in enumerate(steps) if step.tap]
    assert shares[0] < 0.02 and shares[taps[0]] < 0.25 and shares[taps[1]] < 0.65


def test_what_is_kept_serves_every_object():
    encoder = encoder_of(CASES[1])
    pictures = [picture(300, 290, Box(t, t + 30, t, t + 40)) for t in (0, 130, 250, 0)]
    with torch.inference_mode():
        for image, mask in pictures:
            pairs = zip(encoder.around(image, mask), encoder(image), strict=True)
            assert all(torch.allclose(a, b, atol=1e-12) for a, b in pairs)


@pytest.mark.parametrize("encoder", ENCODERS, ids=[str(case) for case in CASES])
def test_a_small_object_in_a_large_picture(encoder):
    """Every layer is computed around the object only."""
    image, mask = picture(640, 601, Box(580, 600, 560, 590))
    with torch.inference_mode():
        found, expected = encoder.around(image, mask), encoder(image)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 1e-12 * b.norm()


def test_threads_share_what_is_kept():
    encoder, images = encoder_of(CASES[1]), []
    for t in (0, 60, 130, 250):
        image, mask = picture(300, 290, Box(t, t + 30, t, t + 40))
        with torch.inference_mode():
            images.append((image, mask, encoder(image)))
    for _ in range(4):
        encoder.derive()
        together = Barrier(len(images))

        def encode(case, together=together):
            image, mask, expected = case
            together.wait()
            with torch.inference_mode():
                found = encoder.around(image, mask)
            pairs = zip(found, expected, strict=True)
            return all(torch.allclose(a, b, atol=1e-12) for a, b in pairs)

        with ThreadPoolExecutor(len(images)) as pool:
            assert all(pool.map(encode, images))


def test_in_half_precision():
    encoder = encoder_of(CASES[1]).float()
    image, mask = picture(300, 290, Box(101, 133, 77, 120))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found, expected = encoder.around(image.float(), mask), encoder(image.float())
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a.float() - b.float()).norm() <= 0.02 * b.float().norm()


def test_other_sizes_are_noticed(monkeypatch):
    encoder, made = encoder_of(CASES[1]), []

    class Counted(EmptyPicture):
        def __init__(self, *args) -> None:
            made.append(1)
            super().__init__(*args)

    monkeypatch.setattr(around_object, "EmptyPicture", Counted)
    for side in (300, 260, 300):
        image, mask = picture(side, side, Box(90, 110, 80, 120))
        for _ in range(2):
            with torch.inference_mode():
                pairs = zip(encoder.around(image, mask), encoder(image), strict=True)
                assert all(torch.allclose(a, b, atol=1e-12) for a, b in pairs)
    assert len(made) == 3


@pytest.mark.parametrize("box", [Box(0, 0, 0, 0), Box(0, 300, 0, 300)])
def test_an_empty_and_a_full_mask(box):
    encoder = ENCODERS[1]
    image, mask = picture(300, 300, box)
    with torch.inference_mode():
        pairs = zip(encoder.around(image, mask), encoder(image), strict=True)
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in pairs)


def test_a_small_picture_offers_nothing():
    steps = encoder_of(CASES[1]).steps(torch.float64)
    assert EmptyPicture(steps, (6, 400), torch.float64).levels == 0
    assert EmptyPicture(steps, (400, 400), torch.float64).levels > 3


def test_a_compiled_encoder_traces_no_kept_weights():
    """Winograd's and oneDNN's forms are for eager use; a traced encoder gives the same."""
    encoder = encoder_of(CASES[1]).float()
    image = torch.randn(1, 3, 65, 65)
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    with torch.no_grad():
        for a, b in zip(compiled(image), encoder(image), strict=True):
            assert torch.allclose(a, b, atol=1e-4)
