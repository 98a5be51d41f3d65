"""A word where bf16 is asked of a processor without it: it takes twice the time there."""

import pytest
import torch

from util.runtime.processor import without_bf16

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("capabilities", "told"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, True),
        ({"avx2": True, "avx512_bf16": True, "amx_bf16": False}, False),
        ({"bf16": True}, False),
        ({"avx2": True}, False),  # torch does not say
    ],
)
def test_bf16_on_a_processor_without_it_is_named(monkeypatch, capabilities, told):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert ("amp off" in (without_bf16("bf16", CPU) or "")) == told
    assert without_bf16("off", CPU) is None and without_bf16("bf16", GPU) is None


def test_an_older_torch_says_nothing(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert without_bf16("bf16", CPU) is None
