"""Prediction without PyTorch."""

from __future__ import annotations

import subprocess
import sys

from tests.own_pictures import ROOT
from tests.training_case import environment

BLOCKED = """
import sys
sys.modules.update(dict.fromkeys(("torch", "torchvision", "timm", "scipy")))
"""


def without_torch(code: str, *arguments: object) -> subprocess.CompletedProcess:
    """``code`` run where PyTorch cannot be imported."""
    words = [sys.executable, "-c", BLOCKED + code, *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True)


def test_what_needs_no_torch_imports_none():
    done = without_torch("import util.predict, util.predict.writing\nutil.predict.box_mask")
    assert done.returncode == 0, done.stderr
    done = without_torch("from util.predict import FewShotPredictor")
    assert "import of torch halted" in done.stderr
    done = without_torch("from util.predict import NoPredictor")
    assert "ImportError: cannot import name 'NoPredictor'" in done.stderr
