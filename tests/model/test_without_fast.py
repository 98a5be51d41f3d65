"""The papers' files speak of the papers only, and do everything without the fast path."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_papers_files_speak_of_the_papers_only():
    for path in sorted((ROOT / "model").glob("[a-z]*.py")):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\b(fast|cpu|cuda)\b", text, re.IGNORECASE), path
    assert len((ROOT / "model" / "hdmnet.py").read_text(encoding="utf-8").splitlines()) < 300


CHECK = """
import torch
from model import build_model
from tests.model.test_parity import test_outputs
from tests.models import episode, options, run

test_outputs("hdmnet_vgg16_pascal_1shot", "fast")
hsnet = options(arch="HSNet", kernel4d="center_pivot", pyramid=(8, 16), hyper_layers="all")
for cfg in (options(), hsnet):
    model = build_model(cfg).eval()
    model.derive()
    with torch.no_grad():
        assert run(model, episode((64, 64))).final.isfinite().all()
    print(type(model).__name__)
"""


def test_without_the_fast_path_everything_runs(tmp_path):
    """In a copy of the tree without it; the reference figures too."""
    for name in ("model", "util", "tests"):
        ignore = shutil.ignore_patterns("fast", "__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    done = subprocess.run(
        [sys.executable, "-c", CHECK],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["HDMNet", "HSNet"]
    assert done.stderr.count("UserWarning") == 1
