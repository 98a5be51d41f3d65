"""What a processor computes in."""

from __future__ import annotations

import torch

AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
BF16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def precision(amp: str, device: torch.device) -> torch.autocast:
    """Around what a model computes on ``device``: the precision that the key ``amp`` names."""
    dtype = AMP[amp]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def without_bf16(amp: str, device: torch.device) -> str | None:
    """What to say where ``amp`` asks for bf16 and the processor has no instructions for it.

    None on GPUs, and where torch does not know (``get_capabilities`` is newer than torch 2.4).
    """
    if amp != "bf16" or device.type != "cpu":
        return None
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    known = [bool(capabilities[name]) for name in BF16 if name in capabilities]
    if not known or any(known):
        return None
    return "this processor has no bf16 instructions: amp off is faster here and more exact"
