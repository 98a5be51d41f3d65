"""The numeric tests with the kernels that other processors choose: ``make test-portable``.

    python -m tests.portable [--only NAME ...] [pytest's arguments]

The libraries are told to use fewer instructions than this processor has. What it does not have
cannot be run here and is named.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
ONEDNN = "ONEDNN_MAX_CPU_ISA"
AVX512 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"})
AMX = frozenset({"amx_tile", "amx_int8", "amx_bf16"})
VARIABLES = (ONEDNN, "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "TEST_WITHOUT_ONEDNN")


class Configuration(NamedTuple):
    """Environment variables of a run, and the flags of a processor that can do it."""

    variables: dict[str, str]
    flags: frozenset[str] = frozenset()


CONFIGURATIONS = {
    "SSE41": Configuration({ONEDNN: "SSE41"}, frozenset({"sse4_1"})),
    "AVX2": Configuration({ONEDNN: "AVX2"}, frozenset({"avx2"})),
    "AVX2/avx2": Configuration(
        {ONEDNN: "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
        frozenset({"avx2"}),
    ),
    "AVX512_CORE": Configuration({ONEDNN: "AVX512_CORE"}, AVX512),
    "AVX512_CORE_AMX": Configuration({ONEDNN: "AVX512_CORE_AMX"}, AVX512 | AMX),
    "without-onednn": Configuration({"TEST_WITHOUT_ONEDNN": "1"}),
    "two-threads": Configuration({"OMP_NUM_THREADS": "2"}),
}


def processor_flags(cpuinfo: str) -> frozenset[str]:
    """What the first processor of a ``/proc/cpuinfo`` can do; empty where none is listed."""
    listed = [line for line in cpuinfo.splitlines() if line.startswith("flags")]
    return frozenset(listed[0].partition(":")[2].split()) if listed else frozenset()


def here() -> frozenset[str]:
    """The flags of this processor (Linux; empty elsewhere)."""
    cpuinfo = Path("/proc/cpuinfo")
    return processor_flags(cpuinfo.read_text() if cpuinfo.is_file() else "")


def missing(name: str, flags: frozenset[str]) -> list[str]:
    """Flags that this processor would need for the configuration of that name."""
    return sorted(CONFIGURATIONS[name].flags - flags)


def command(arguments: list[str], threads: int) -> list[str]:
    """pytest over the numeric tests, on two cores."""
    spread = ["-n", "2", "--dist", "loadfile"] if threads == 1 else []
    return [sys.executable, "-m", "pytest", "-m", "numeric and not slow", *spread, *arguments]


def run(name: str, arguments: list[str]) -> tuple[int, float]:
    """Exit status of the numeric tests under one configuration, and seconds."""
    kept = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    environment = {**kept, "OMP_NUM_THREADS": "1", **CONFIGURATIONS[name].variables}
    begin = time.monotonic()
    words = command(arguments, int(environment["OMP_NUM_THREADS"]))
    status = subprocess.run(words, cwd=ROOT, env=environment).returncode
    return status, time.monotonic() - begin


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.portable", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=CONFIGURATIONS, default=list(CONFIGURATIONS))
    args, arguments = parser.parse_known_args()
    lines, failed = [], False
    for name in args.only:
        if lacking := missing(name, here()):
            lines.append(f"{name:16} left out: this processor has no {', '.join(lacking)}")
            continue
        print(f"\n== {name}: {CONFIGURATIONS[name].variables}", flush=True)
        status, seconds = run(name, arguments)
        failed |= status != 0
        lines.append(f"{name:16} {'FAILED' if status else 'passed'} in {seconds:.0f} s")
    print("\n" + "\n".join(lines))
    sys.exit(failed)


if __name__ == "__main__":
    main()
