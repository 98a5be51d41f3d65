"""Small models and episodes for the tests."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from model import build_model

OPTIONS = dict(
    arch="HDMNet", backbone="resnet18", stem="deep", width=8, block_relu=True, num_base=5, shot=1,
    stages=3, matching="correlation", hierarchy="decoupled", distill=True, ensemble=True,
    temperature=1.0, mask_support=True, fidelity="released", compute="fast", kshot_trans_dim=2,
    own_class="left_out", object_above=0.5, fix_bn=True, freeze_encoder=False, fusion_lr=10.0,
    aux_weight1=1.0, aux_weight2=1.0, backbone_lr=0.0,
)  # fmt: skip


def options(**changes) -> SimpleNamespace:
    """What build_model reads from a configuration, for a narrow network."""
    return SimpleNamespace(**{**OPTIONS, **changes})


def build(seed: int = 0, **changes):
    """A model with random weights and random batch-norm statistics, in evaluation mode."""
    torch.manual_seed(seed)
    model = build_model(options(**changes))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
            module.weight.data.uniform_(0.8, 1.2)
            module.bias.data.normal_(0, 0.1)
    return model.eval()


def twins(seed: int = 0, **changes):
    """The same weights in the fast and in the textbook form, in float64.

    Those of the ensemble are moved from where it begins, as the few-shot prediction alone.
    """
    fast = build(seed, compute="fast", **changes).double()
    for name, weight in fast.named_parameters():
        if name.startswith("ensemble."):
            weight.data.add_(torch.linspace(-0.3, 0.4, weight.numel()).view_as(weight))
    textbook = build(seed, compute="textbook", **changes).double()
    textbook.load_state_dict(fast.state_dict())
    fast.derive()
    return fast, textbook


def episode(size, batch=1, shot=1, seed=0, share=0.15, dtype=torch.float32, num_base=5):
    """Random pictures; masks with one rectangle of about ``share`` of the picture."""
    generator = torch.Generator().manual_seed(seed)
    h, w = size
    masks = torch.zeros(batch, shot + 1, h, w, dtype=torch.uint8)
    side = share**0.5
    for mask in masks.flatten(0, 1):
        rows, columns = max(1, round(h * side)), max(1, round(w * side))
        top = int(torch.randint(0, h - rows + 1, (), generator=generator))
        left = int(torch.randint(0, w - columns + 1, (), generator=generator))
        mask[top : top + rows, left : left + columns] = 1
    return dict(
        query_image=torch.randn(batch, 3, h, w, generator=generator).to(dtype),
        support_images=torch.randn(batch, shot, 3, h, w, generator=generator).to(dtype),
        support_masks=masks[:, 1:],
        query_mask=masks[:, 0].long(),
        base_mask=torch.randint(0, num_base + 1, (batch, h, w), generator=generator),
        class_index=torch.randint(0, num_base, (batch,), generator=generator),
    )


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, (torch.nn.Dropout, torch.nn.Dropout2d)):
            module.p = 0.0
    return model


def run(model, data, training=False):
    """Forward pass on what :func:`episode` makes."""
    return model(
        data["query_image"],
        data["support_images"],
        data["support_masks"],
        data["class_index"] if training else None,
    )
