"""Time, peak memory and operation counts of competing functions."""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from util.runtime.memory import keep_freed_memory

MIB = 1 << 20


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternate(
    functions: dict[str, Callable[[], object]], device: torch.device, repeats: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of each function, taken in turns so that a slow minute hits all of them."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warmup + repeats):
        for name, function in functions.items():
            synchronise(device)
            start = time.perf_counter()
            function()
            synchronise(device)
            if turn >= warmup:
                times[name].append(time.perf_counter() - start)
    return times


def medians(times: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in times.items()}


def peak_memory(function: Callable[[], object], device: torch.device) -> float:
    """MiB that ``function`` needs at its highest, beyond what is held before it starts.

    On a CPU the high-water mark of the resident set (Linux), free heap given back first; NaN where
    the system cannot tell.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / MIB
    if not sys.platform.startswith("linux"):
        function()
        return float("nan")
    _give_back()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    function()
    return (_status("VmHWM") - before) / 1024


def in_fresh_process(function: Callable, *args):
    """What ``function(*args)`` returns in a new process, whose allocator keeps nothing yet; what
    this process keeps free is given back first, or both together might not fit."""
    _give_back()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=keep_freed_memory) as pool:
        return pool.submit(function, *args).result()


def _give_back() -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).malloc_trim(0)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


def _product_operations(total, a, b, **_) -> int:
    """Operations of ``total += a @ b`` from the shapes, batched or not."""
    return 2 * math.prod(a) * b[-1]


def _packed_operations(x, weight, *_, out_shape, **__) -> int:
    """Operations of a convolution whose weight has shape [O, C, k, k]."""
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def _packed_sum_operations(shortcut, x, weight, *_, **__) -> int:
    return _packed_operations(x, weight, out_shape=shortcut)


# What torch's counter leaves out: products that add up in place, oneDNN's own convolutions.
LEFT_OUT = {
    torch.ops.aten.addmm_: _product_operations,
    torch.ops.aten.baddbmm_: _product_operations,
}
if torch.backends.mkldnn.is_available():
    LEFT_OUT[torch.ops.mkldnn._convolution_pointwise] = _packed_operations
    LEFT_OUT[torch.ops.mkldnn._convolution_pointwise_] = _packed_sum_operations


def operations(function: Callable[[], object]) -> int:
    """Floating-point operations (a multiply-add counts two) by torch's counter."""
    with FlopCounterMode(display=False, custom_mapping=LEFT_OUT) as counter:
        function()
    return counter.get_total_flops()


def convolution_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of one large convolution: what this machine can do, measured."""
    memory = torch.channels_last
    x = torch.randn(2, 512, 60, 60, device=device).to(dtype).to(memory_format=memory)
    weight = torch.randn(512, 512, 3, 3, device=device).to(dtype).to(memory_format=memory)
    with torch.inference_mode():
        times = alternate({"conv": lambda: F.conv2d(x, weight, padding=1)}, device, 7, 2)
    return 2 * 2 * 512 * 512 * 9 * 3600 / min(times["conv"])


@contextmanager
def shares(parts: dict[str, list[tuple[object, str]]], device: torch.device):
    """Seconds spent in named methods while the block runs: {part: [(owner, method), …]}.

    The methods of a part must not call each other. Yields the dictionary that is filled.
    """
    spent = dict.fromkeys(parts, 0.0)
    for part, methods in parts.items():
        for owner, name in methods:
            setattr(owner, name, _timed(getattr(owner, name), spent, part, device))
    try:
        yield spent
    finally:
        for methods in parts.values():
            for owner, name in methods:
                delattr(owner, name)


def _timed(method: Callable, spent: dict[str, float], part: str, device: torch.device) -> Callable:
    def timed(*args, **kwargs):
        synchronise(device)
        start = time.perf_counter()
        result = method(*args, **kwargs)
        synchronise(device)
        spent[part] += time.perf_counter() - start
        return result

    return timed


def machine(device: torch.device) -> dict[str, str]:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    described = {
        "processor": f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": str(device),
    }
    if device.type == "cuda":
        described["device"] = torch.cuda.get_device_name(device)
    return described
