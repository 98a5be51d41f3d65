"""``make test-portable``: what it runs, what it leaves out, and that its settings take effect."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.portable import CONFIGURATIONS, ROOT, command, here, missing, processor_flags

CPUINFO = "processor : 0\nflags : fpu sse4_1 avx2 avx512f avx512bw\nprocessor : 1\nflags : fpu\n"


def test_what_a_processor_lacks_is_left_out() -> None:
    flags = processor_flags(CPUINFO)
    assert flags == {"fpu", "sse4_1", "avx2", "avx512f", "avx512bw"}
    found = {name: missing(name, flags) for name in CONFIGURATIONS}
    assert found == {
        "SSE41": [],
        "AVX2": [],
        "AVX2/avx2": [],
        "AVX512_CORE": ["avx512dq", "avx512vl"],
        "AVX512_CORE_AMX": ["amx_bf16", "amx_int8", "amx_tile", "avx512dq", "avx512vl"],
        "without-onednn": [],
        "two-threads": [],
    }
    assert processor_flags("") == frozenset()


@pytest.mark.parametrize("name", ["AVX2/avx2", "without-onednn", "two-threads"])
def test_settings_take_effect(name) -> None:
    """In a new process: torch's own instructions, oneDNN, threads."""
    if missing(name, here()):
        pytest.skip(f"this processor cannot run {name}")
    words = "import torch, tests; print(torch.backends.cpu.get_cpu_capability(), "
    words += "torch.backends.mkldnn.enabled, torch.get_num_threads())"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **CONFIGURATIONS[name].variables}
    done = subprocess.run(
        [sys.executable, "-c", words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    capability, onednn, threads = done.stdout.split()
    assert (capability == "AVX2") or name != "AVX2/avx2"
    assert (onednn == "True") is (name != "without-onednn")
    assert threads == ("2" if name == "two-threads" else "1")


def test_the_numeric_tests_are_chosen_by_their_mark() -> None:
    """Models, matching, evaluation, training, parity: files may move, none may drop out."""
    words = command(["--collect-only", "-p", "no:cacheprovider"], threads=2)
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for part in ("model/test_hdmnet", "model/test_hsnet", "model/test_parity", "model/test_layers",
                 "evaluate/", "train/", "predict/"):  # fmt: skip
        assert f"tests/{part}" in done.stdout, part
