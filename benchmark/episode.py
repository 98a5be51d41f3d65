"""One episode and one training step: textbook against fast, float32 against bfloat16."""

from __future__ import annotations

import gc
import time
from functools import partial

import torch

from benchmark.cases import CONFIGS, autocast, episodes, model_pair, predict, train_step
from benchmark.measure import (
    alternate,
    convolution_rate,
    medians,
    operations,
    peak_memory,
    shares,
    synchronise,
)

BF16 = torch.bfloat16


def evaluation(
    device: torch.device, sizes=(473, 633), shots=(1, 5), repeats: int = 5
) -> list[dict]:
    """Rows: size, shot, form; milliseconds, ratio to the textbook, peak memory, share by part."""
    limits = {dtype: convolution_rate(device, dtype) for dtype in (torch.float32, BF16)}
    rows = []
    for size in sizes:
        models = model_pair(CONFIGS.get(size, CONFIGS[473]), device)
        for shot in shots:
            data = episodes(size, shot, 1, device)
            forms = {
                "textbook float32": (models["textbook"], None),
                "fast float32": (models["fast"], None),
                "fast bf16": (models["fast"], BF16),
            }
            calls = {
                name: partial(predict, model, data, dtype) for name, (model, dtype) in forms.items()
            }
            times = medians(alternate(calls, device, repeats if shot == 1 else max(3, repeats - 2)))
            for name, (model, dtype) in forms.items():
                with torch.no_grad(), autocast(device, dtype):
                    flops = operations(partial(_forward, model, data))
                rate = flops / times[name]
                rows.append(
                    {
                        "size": size,
                        "shot": shot,
                        "form": name,
                        "ms": 1e3 * times[name],
                        "ratio": times["textbook float32"] / times[name],
                        "peak_mib": peak_memory(calls[name], device),
                        "gflop": flops / 1e9,
                        "gflop_per_s": rate / 1e9,
                        "of_convolution_rate": rate / limits[dtype or torch.float32],
                        **_parts(model, calls[name], device),
                    }
                )
        del models
        gc.collect()
    return rows


def _forward(model, data):
    return model(data["query_image"], data["support_images"], data["support_masks"])


def _parts(model, call, device) -> dict[str, float]:
    """Share of each part of the model in one call."""
    parts = {
        "encoder": [(model, "encode_episode")],
        "prior": [(model, "_prior")],
        "pyramid": [(stage, "forward") for stage in model.pyramid],
        "matching + decoder": [
            *((block, "support_tokens") for block in model.matching),
            *((block, "attend") for block in model.matching),
            *((block, "merge_prior") for block in model.matching),
            (model.decoder, "forward"),
        ],
        "ensemble": [(model.ensemble, "factor"), (model.ensemble, "forward")],
    }
    with shares({"all": [(model, "forward")], **parts}, device) as spent:
        call()
        synchronise(device)
    total = spent.pop("all")
    return {f"share_{name}": seconds / total for name, seconds in spent.items()}


def training(
    device: torch.device, sizes=(473, 633), batches: tuple[int, ...] = (1, 0), repeats: int = 3
) -> list[dict]:
    """Rows: size, batch, form; milliseconds and peak extra memory of a step. Batch 0: config's."""
    rows = []
    for size in sizes:
        models = model_pair(CONFIGS.get(size, CONFIGS[473]), device)
        for batch in batches:
            batch = batch or {473: 4, 633: 6}[size]
            data = episodes(size, 1, batch, device)
            forms = {
                "textbook float32": (models["textbook"], None),
                "fast float32": (models["fast"], None),
                "fast bf16": (models["fast"], BF16),
            }
            calls = {
                name: partial(train_step, model, data, dtype)
                for name, (model, dtype) in forms.items()
            }
            times = medians(alternate(calls, device, repeats)) if batch == 1 else {}
            memory = {}
            for name, call in calls.items():
                start = time.perf_counter()
                memory[name] = peak_memory(call, device)
                # A larger batch takes minutes: its time is that of the one step that was weighed.
                times.setdefault(name, time.perf_counter() - start)
            rows += [
                {
                    "size": size,
                    "batch": batch,
                    "form": name,
                    "ms": 1e3 * times[name],
                    "ratio": times["textbook float32"] / times[name],
                    "peak_mib": memory[name],
                    "memory_ratio": memory[name] / memory["textbook float32"],
                }
                for name in calls
            ]
        del models
        gc.collect()
    return rows


def growth(
    device: torch.device, sizes=(233, 393, 473, 633, 873), shots=(1, 2, 5, 10)
) -> list[dict]:
    """Time and memory of one episode against resolution (1 shot) and shots (at 473²)."""
    cases = [(size, 1) for size in sizes] + [(473, shot) for shot in shots if shot != 1]
    models = model_pair(CONFIGS[473], device)
    rows = []
    for size, shot in cases:
        data = episodes(size, shot, 1, device)
        calls = {name: partial(predict, model, data) for name, model in models.items()}
        times = medians(alternate(calls, device, 2 if size > 600 or shot > 5 else 3))
        row = {"size": size, "shot": shot}
        for name, call in calls.items():
            row[f"{name}_ms"] = 1e3 * times[name]
            row[f"{name}_peak_mib"] = peak_memory(call, device)
        rows.append({**row, "ratio": times["textbook"] / times["fast"]})
    return rows
