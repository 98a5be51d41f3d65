"""The photograph model in PyTorch, on onnxruntime, in a browser: loading, memory, time, room."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from benchmark.browser import Isolated, Quiet, missing, seconds_in_the_browser, served
from benchmark.one_predictor import picture
from model import build_model
from util.config import load_config
from util.weights.onnx import export_onnx
from util.weights.onnx_about import WEIGHTS

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "config/photos/photos_split0_tf_efficientnet_lite0.yaml"


def predictors(folder: Path) -> list[dict]:
    """Rows: engine; MB on disk, seconds to load (imports included), milliseconds for a support and
    for a picture with one class of one support, the highest memory of the process. Weights are
    random: they change none of it.

    folder: takes the files that are measured.
    """
    torch.manual_seed(0)
    cfg = load_config(CONFIG)
    weight = folder / "model.pth"
    torch.save({"model": build_model(cfg).state_dict(), "config": cfg.to_dict()}, weight)
    rows = [_row("PyTorch", "torch", weight, weight.stat().st_size)]
    for weights in WEIGHTS:
        written = export_onnx(cfg, weight, folder / weights, weights)
        size = sum(written.sizes.values())
        rows.append(_row(f"onnxruntime {weights}", "onnx", folder / weights, size))
        rows[-1]["difference"] = max(written.differences.values())
    if lacking := missing():
        print(f"not measured in a browser, which needs {', '.join(lacking)}")
        return rows
    for name, handler in (("one core", Quiet), ("all cores", Isolated)):
        with served(folder / "int8", folder / "site", handler) as address:
            times = seconds_in_the_browser(address, picture(), folder)
        size = sum(path.stat().st_size for path in (folder / "site").iterdir())
        rows.append({"engine": f"Chromium int8, {name}", "mb": size / 1e6, **times})
    return rows


def _row(name: str, engine: str, path: Path, size: int) -> dict:
    words = [sys.executable, "-m", "benchmark.one_predictor", engine, str(path)]
    done = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True)
    return {"engine": name, "mb": size / 1e6} | json.loads(done.stdout)
