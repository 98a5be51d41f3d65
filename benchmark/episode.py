"""One episode and one training step: textbook against fast, float32 against bfloat16."""

from __future__ import annotations

import gc
import time
from functools import partial

import torch

from benchmark.cases import (
    CONFIGS,
    autocast,
    episodes,
    model_of,
    model_pair,
    predict,
    train_step,
)
from benchmark.measure import (
    alternate,
    convolution_rate,
    in_fresh_process,
    medians,
    operations,
    peak_memory,
    shares,
    synchronise,
)
from util.config import load_config

BF16 = torch.bfloat16
FORMS = {
    "textbook float32": ("textbook", None),
    "fast float32": ("fast", None),
    "fast bf16": ("fast", BF16),
}


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
            calls = {
                name: partial(predict, models[compute], data, dtype)
                for name, (compute, dtype) in FORMS.items()
            }
            times = medians(alternate(calls, device, repeats if shot == 1 else max(3, repeats - 2)))
            for name, (compute, dtype) in FORMS.items():
                model = models[compute]
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
    with shares(parts, device) as spent:
        synchronise(device)
        start = time.perf_counter()
        call()
        synchronise(device)
        total = time.perf_counter() - start
    return {f"share_{name}": seconds / total for name, seconds in spent.items()}


def training(
    device: torch.device, sizes=(473, 633), batches: tuple[int, ...] = (1, 0), repeats: int = 3
) -> list[dict]:
    """Rows: size, batch, form; milliseconds and peak extra memory of a step. Batch 0: config's."""
    rows = []
    for size in sizes:
        config = CONFIGS.get(size, CONFIGS[473])
        for batch in batches:
            batch = batch or load_config(config).batch_size
            models = model_pair(config, device)
            data = episodes(size, 1, batch, device)
            calls = {
                name: partial(train_step, models[compute], data, dtype)
                for name, (compute, dtype) in FORMS.items()
            }
            # A larger batch takes minutes.
            times = medians(alternate(calls, device, repeats if batch == 1 else 1))
            del models, data, calls
            gc.collect()
            memory = {name: _memory(config, size, batch, name, device) for name in FORMS}
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
                for name in FORMS
            ]
    return rows


def _memory(config: str, size: int, batch: int, form: str, device: torch.device) -> float:
    """MiB of a step beyond the loaded model, which has made one before."""
    if device.type == "cpu":
        return in_fresh_process(_peak, config, size, batch, form, device)
    return _peak(config, size, batch, form, device)


def _peak(config: str, size: int, batch: int, form: str, device: torch.device) -> float:
    compute, dtype = FORMS[form]
    model = model_of(config, device, compute)
    data = episodes(size, 1, batch, device)
    train_step(model, data, dtype)
    return peak_memory(partial(train_step, model, data, dtype), device)


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
