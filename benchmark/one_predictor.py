"""One predictor in a process of its own, which imports what it needs and nothing else.

python -m benchmark.one_predictor torch best.pth
python -m benchmark.one_predictor onnx exported/
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

SIZE = 480, 640  # of the pictures
REPEATS = 7


def milliseconds(function: Callable[[], object]) -> float:
    """Median, after one call that does not count."""
    times = []
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def picture() -> np.ndarray:
    """uint8 [H, W, 3]."""
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def main() -> None:
    engine, path = sys.argv[1:]
    start = time.perf_counter()
    if engine == "torch":
        from util.predict import FewShotPredictor
        from util.weights.load import model_of

        predictor = FewShotPredictor.from_config(*model_of(None, path), "cpu")
    else:
        from util.predict import OnnxPredictor

        predictor = OnnxPredictor(path)
    loaded = time.perf_counter() - start
    pixels = picture()
    box = 200, 150, 400, 330
    found = {
        "load_s": loaded,
        "support_ms": milliseconds(lambda: predictor.add_support(pixels, box=box)),
    }
    predictor.reset()
    predictor.add_support(pixels, box=box)
    found["query_ms"] = milliseconds(lambda: predictor.predict(pixels))
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    peak = [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")]
    print(json.dumps(found | {"peak_mib": peak[0] if peak else float("nan")}))


if __name__ == "__main__":
    main()
