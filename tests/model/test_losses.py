"""Segmentation loss, distillation, Gram matrices and the ensemble, by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from model.distillation import distillation_loss, ground_truth_teacher
from model.ensemble import Ensemble, ShotReweighting, base_foreground, gram, gram_distance
from model.fewshot import segmentation_loss
from model.hdmnet import masked_prototype
from model.layers import align, align_rows

pytestmark = pytest.mark.numeric


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 150), st.integers(1, 20)),
    st.data(),
)
def test_rows_of_an_enlarged_map(small, size, data):
    first = data.draw(st.integers(0, size[0] - 1))
    end = data.draw(st.integers(first + 1, size[0]))
    x = torch.randn(2, 3, *small, dtype=torch.float64)
    expected = align(x, size)[:, :, first:end]
    assert torch.allclose(align_rows(x, size, first, end), expected, rtol=0, atol=1e-12)


def test_segmentation_loss_enlarges_logits():
    logits = torch.randn(2, 4, 9, 11, dtype=torch.float64)
    target = torch.randint(0, 4, (2, 150, 83))
    target[:, ::3] = 255
    expected = F.cross_entropy(align(logits, (150, 83)), target, ignore_index=255).item()
    assert segmentation_loss(logits, target).item() == pytest.approx(expected, rel=1e-12)
    grown = logits.clone().requires_grad_()
    assert segmentation_loss(grown, target).item() == pytest.approx(expected, rel=1e-12)


def test_segmentation_loss_leaves_ignored_pixels_out():
    logits = torch.zeros(1, 2, 2, 2)
    logits[0, 1, 0, 0] = 3.0
    target = torch.tensor([[[1, 0], [255, 255]]])
    expected = (math.log(1 + math.exp(-3)) + math.log(2)) / 2
    assert segmentation_loss(logits, target).item() == pytest.approx(expected)
    assert segmentation_loss(logits, torch.full_like(target, 255)).item() == 0


def test_teacher_is_uniform_over_the_largest_positions():
    mask = torch.zeros(2, 8, 8, dtype=torch.long)
    mask[0, :4] = 1
    mask[0, 4:] = 255
    teacher = ground_truth_teacher(mask, (2, 2), torch.float32).exp()
    assert torch.allclose(teacher, torch.tensor([[0.5, 0.5, 0, 0], [0.25] * 4]))


def test_teacher_of_an_object_too_small_for_a_position():
    mask = torch.zeros(1, 64, 64, dtype=torch.long)
    mask[0, 17, 40] = 1
    teacher = ground_truth_teacher(mask, (4, 4), torch.float32).exp()
    assert teacher.sum().item() == pytest.approx(1) and torch.isfinite(teacher).all()


def test_distillation_by_hand():
    coarse = torch.tensor([[[2.0, 0.0]]])
    mask = torch.tensor([[[1, 0]]])
    p = math.exp(2) / (math.exp(2) + 1)
    assert distillation_loss([coarse], mask).item() == pytest.approx(-math.log(p), rel=1e-5)
    fine = torch.zeros(1, 1, 2)
    kl = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    expected = (kl - math.log(p)) / 2
    assert distillation_loss([fine, coarse], mask).item() == pytest.approx(expected, rel=1e-5)


def test_distillation_teaches_the_finer_stage_only():
    fine = torch.randn(1, 4, 4, requires_grad=True)
    coarse = torch.randn(1, 2, 2, requires_grad=True)
    mask = torch.ones(1, 8, 8, dtype=torch.long)
    alone = distillation_loss([coarse], mask)
    (gradient,) = torch.autograd.grad(alone, coarse)
    both = distillation_loss([fine, coarse], mask)
    fine_gradient, coarse_gradient = torch.autograd.grad(both, (fine, coarse))
    assert fine_gradient.abs().sum() > 0
    assert torch.allclose(coarse_gradient, gradient / 2)


def test_gram_is_the_cosine_between_channels():
    feature = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    flat = feature.flatten(2)
    expected = torch.nn.functional.cosine_similarity(flat[:, :, None], flat[:, None], dim=3)
    assert torch.allclose(gram(feature), expected, atol=1e-6)
    assert torch.allclose(
        gram_distance(gram(feature), gram(feature)[:, None]), torch.zeros(1).double()
    )
    ones = torch.ones(1, 3, 3)
    assert gram_distance(ones, torch.zeros(1, 1, 3, 3)).item() == pytest.approx(1)


def test_base_map_leaves_the_episodes_class_out():
    logits = torch.randn(2, 4, 3, 3)
    everything = base_foreground(logits, None)
    without = base_foreground(logits, torch.tensor([0, 2]))
    probabilities = logits.softmax(1)
    assert torch.allclose(everything, 1 - probabilities[:, :1])
    assert torch.allclose(everything[1] - without[1], probabilities[1, 3:4], atol=1e-6)


def test_base_map_of_a_learner_that_never_had_the_class():
    logits, own = torch.randn(2, 4, 3, 3), torch.tensor([0, 2])
    found = base_foreground(logits, own, unlearned=True)
    for one, index in enumerate(own.tolist()):
        others = [channel for channel in range(4) if channel != index + 1]
        expected = logits[one, others].softmax(0)[1:].sum(0, keepdim=True)
        assert torch.allclose(found[one], expected, atol=1e-6)
    everything = base_foreground(logits, None)
    assert torch.equal(base_foreground(logits, None, unlearned=True), everything)


def test_fusion_starts_as_the_meta_prediction():
    ensemble = Ensemble(1, 2, restore_order=False)
    meta, base = torch.randn(2, 2, 3, 3), torch.randn(2, 4, 3, 3)
    final = ensemble(meta, base, torch.tensor([0.3, 0.4]), None)
    assert torch.allclose(final, meta.softmax(1))


def test_shot_weights_by_position_or_by_value():
    distances = torch.tensor([[0.3, 0.1, 0.2]])
    released = ShotReweighting(3, 2, restore_order=False)
    corrected = ShotReweighting(3, 2, restore_order=True)
    corrected.load_state_dict(released.state_dict())
    by_rank = released(distances)[0]
    # the weight of rank r goes to the support that has rank r: ranks of the values are 2, 0, 1
    assert torch.allclose(corrected(distances)[0], by_rank[[2, 0, 1]])
    assert by_rank.sum().item() == pytest.approx(1)


def test_prototype_is_the_masked_mean():
    feature = torch.randn(1, 5, 4, 4)
    mask = torch.zeros(1, 4, 4, dtype=torch.uint8)
    mask[0, 1:3, 1:3] = 1
    expected = feature[0, :, 1:3, 1:3].sum((1, 2)) / (4 + 0.0005)
    assert torch.allclose(masked_prototype(feature, mask)[0], expected, atol=1e-6)
    assert (masked_prototype(feature, torch.zeros_like(mask)) == 0).all()
