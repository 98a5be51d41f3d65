"""The reference figures: state dicts drawn from tensor names, and the cases' inputs."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"
# parts that are drawn with unit gain, see tests/golden/README.md
UNIT_GAIN = ("transformer.", "hpn_learner.")


def released_state(layout: dict[str, list[int]], seed: int) -> dict[str, torch.Tensor]:
    """Every tensor of a released layout drawn from its own name."""
    state = {}
    for name, shape in layout.items():
        rng = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
        a = np.asarray(rng.standard_normal(shape), dtype=np.float32)
        if name.endswith("num_batches_tracked"):
            a = np.zeros(shape, dtype=np.int64)
        elif name.endswith("running_var"):
            a = np.abs(a) * 0.2 + 0.8
        elif name.endswith("running_mean"):
            a = a * 0.1
        elif len(shape) >= 2:
            gain = 1.0 if name.startswith(UNIT_GAIN) else 2.0
            a = a * np.sqrt(gain / np.prod(shape[1:]))
        elif name.endswith("bias"):
            a = a * 0.05
        else:
            a = (1 + 0.1 * a) * (0.25 if name.endswith(".bn3.weight") else 1.0)
        tensor = torch.as_tensor(np.asarray(a))
        state[name] = tensor if tensor.dtype == torch.int64 else tensor.float()
    return state


def load_case(name: str) -> tuple[dict, dict]:
    """Arrays of ``golden/<name>.npz`` and its meta information."""
    with np.load(GOLDEN / f"{name}.npz") as archive:
        arrays = {key: archive[key] for key in archive.files}
    return arrays, json.loads(str(arrays.pop("meta_info")))


def load_layout(name: str) -> dict[str, list[int]]:
    return json.loads((GOLDEN / f"layout_{name}.json").read_text())


def relative_error(a: torch.Tensor, b) -> float:
    a = a.detach().double().numpy()
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
