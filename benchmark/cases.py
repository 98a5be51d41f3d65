"""Models and random episodes for the measurements."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import Tensor, nn

from model import build_model
from model.fewshot import split_shots, total
from model.layers import size_of
from util.config import load_config

CONFIGS = {
    473: "config/pascal/pascal_split0_resnet50.yaml",
    633: "config/coco/coco_split0_resnet50.yaml",
}
OBJECT_SHARE = 0.08


def model_of(
    config: str, device: torch.device, compute: str, overrides: list | None = None
) -> nn.Module:
    """The model in textbook or fast form, the same random weights in either."""
    torch.manual_seed(0)
    cfg = load_config(config, [*(overrides or []), "compute", compute])
    model = build_model(cfg).to(device).eval()
    model.derive()
    return model


def model_pair(
    config: str, device: torch.device, overrides: list | None = None
) -> dict[str, nn.Module]:
    """Both forms."""
    return {form: model_of(config, device, form, overrides) for form in ("textbook", "fast")}


def episodes(
    size: int, shot: int, batch: int, device: torch.device, share: float = OBJECT_SHARE
) -> dict[str, Tensor]:
    """Random pictures whose supports hold one square object of about ``share`` of the area."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(batch, shot + 1, size, size, dtype=torch.uint8)
    side = round(size * share**0.5)
    for mask in masks.flatten(0, 1):
        top, left = torch.randint(0, size - side + 1, (2,), generator=generator).tolist()
        mask[top : top + side, left : left + side] = 1
    data = {
        "query_image": torch.randn(batch, 3, size, size, generator=generator),
        "support_images": torch.randn(batch, shot, 3, size, size, generator=generator),
        "support_masks": masks[:, 1:],
        "query_mask": masks[:, 0].long(),
        "base_mask": torch.randint(0, 16, (batch, size, size), generator=generator),
        "class_index": torch.zeros(batch, dtype=torch.long),
    }
    return {name: tensor.to(device) for name, tensor in data.items()}


def predict(model: nn.Module, data: dict[str, Tensor], dtype: torch.dtype | None = None):
    """One evaluation pass, under autocast when a dtype is given, in the steps that evaluation
    takes: it enlarges the base learner's logits for each query once, not in each episode.
    """
    query, images, masks = data["query_image"], data["support_images"], data["support_masks"]
    with torch.inference_mode(), autocast(query.device, dtype):
        encoded = model.encode_episode(query, images.flatten(0, 1), masks.flatten(0, 1))
        supports = split_shots(model.prepare_support(encoded[1]), images.shape[1])
        return model.match(model.prepare_query(encoded[0]), supports, size_of(query))


def train_step(model: nn.Module, data: dict[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Forward, losses, backward; gradients are dropped at the end."""
    model.train()
    with autocast(data["query_image"].device, dtype):
        out = model(
            data["query_image"], data["support_images"], data["support_masks"], data["class_index"]
        )
        losses = model.losses(out, data["query_mask"], data["base_mask"])
    del out  # as in train.py, where the losses are all that leaves the step
    total(losses).backward()
    model.zero_grad(set_to_none=True)


@contextmanager
def autocast(device: torch.device, dtype: torch.dtype | None):
    with torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        yield
