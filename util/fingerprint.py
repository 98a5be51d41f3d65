"""Which frozen weights a learned part belongs to."""

from __future__ import annotations

import hashlib

import torch

from model.fewshot import FewShotModel


def frozen_fingerprint(model: FewShotModel) -> str:
    """SHA-256, in hexadecimal, of the names, types, shapes and bytes of the frozen tensors."""
    learnable = model.learnable_state()
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name in learnable or name.endswith("num_batches_tracked"):
            continue
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
