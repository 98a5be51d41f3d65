"""Which weights these are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256, in hexadecimal, of the names, types, shapes and bytes of a state dict's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        if name.endswith("num_batches_tracked"):
            continue
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
