"""How a result came about: command, versions, configuration."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from util.runtime.files import write_atomically


def write_run_record(path: Path, config: Mapping[str, Any], **facts: Any) -> None:
    """How a result came about: command, time, ``facts``, versions, resolved configuration."""
    record = {
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **facts,
        "versions": versions(),
        "config": config,
    }
    text = json.dumps(record, indent=2, default=str) + "\n"
    write_atomically(path, text.encode())


@cache
def versions() -> dict[str, str]:
    """Versions of Python, the libraries that decide numbers, and this code (its git commit)."""
    return {
        "code": _commit(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "numpy": np.__version__,
    }


def _commit() -> str:
    """Commit of the working tree, with '+' when files differ from it; 'unknown' outside git."""
    root = Path(__file__).resolve().parents[2]
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        if head.returncode != 0:
            return "unknown"
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True
        )
    except OSError:
        return "unknown"
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")
