"""The paper never imports the fast path: what that means, file by file."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FAST = ROOT / "model" / "fast"
ELSEWHERE = {".venv", "tests", "exp", "data"}
FILES = [p for p in ROOT.rglob("*.py") if not ELSEWHERE & set(p.relative_to(ROOT).parts[:1])]


def imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    whole = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    parts = [n for n in nodes if isinstance(n, ast.ImportFrom)]
    return whole | {f"{n.module}.{alias.name}" for n in parts for alias in n.names}


def test_only_the_registry_knows_the_fast_path():
    outside = [p for p in FILES if FAST not in p.parents and p != ROOT / "model" / "__init__.py"]
    assert outside and not [p for p in outside for n in imported(p) if n.startswith("model.fast")]


def test_the_papers_files_speak_of_the_papers_only():
    for path in FILES:
        if path.parent == ROOT / "model" and path.name != "__init__.py":
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
