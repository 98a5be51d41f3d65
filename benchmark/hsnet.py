"""HSNet's training step: textbook against fast, at several shares of the object in the support."""

from __future__ import annotations

from functools import partial

import torch

from benchmark.cases import episodes, model_pair, train_step
from benchmark.measure import alternate, medians, peak_memory

CONFIG = "config/pascal/pascal_split0_resnet50_hsnet.yaml"
SHARES = (0.05, 0.2, 0.5, 0.8, 1.0)


def training_step(
    device: torch.device, size: int = 400, shares: tuple[float, ...] = SHARES, repeats: int = 7
) -> list[dict]:
    """Rows: share of the support that is object, form; milliseconds, ratio to the textbook, peak
    memory beyond the loaded model and its share of the textbook's. Batch 1, float32."""
    models = model_pair(CONFIG, device)
    rows = []
    for share in shares:
        data = episodes(size, 1, 1, device, share)
        calls = {form: partial(train_step, model, data) for form, model in models.items()}
        times = medians(alternate(calls, device, repeats))
        memory = {form: peak_memory(call, device) for form, call in calls.items()}
        rows += [
            {
                "object share": share,
                "form": form,
                "ms": 1e3 * times[form],
                "ratio": times["textbook"] / times[form],
                "peak_mib": memory[form],
                "of the textbook's memory": memory[form] / memory["textbook"],
            }
            for form in calls
        ]
    return rows
