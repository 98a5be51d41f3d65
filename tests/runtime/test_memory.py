"""The allocator's thresholds: what they change, who sets them, and what leaves them alone."""

from __future__ import annotations

import ast
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from util.runtime import memory

ROOT = Path(__file__).resolve().parents[2]
GLIBC = platform.libc_ver()[0] == "glibc"
on_glibc = pytest.mark.skipif(not GLIBC, reason="this C library is not glibc: nothing to set")

# Pages that ten blocks of 64 MB, each freed before the next, bring in once memory is warm.
COUNT = """
import resource
from multiprocessing import get_context
from util.runtime.errors import run
from util.runtime.memory import keep_freed_memory
from util.runtime.signals import start_worker

def faults(block):
    for turn in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            block()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def plain():
    return bytearray(64 * 10**6)

def tensor():
    import torch
    return torch.zeros(16 * 10**6)

if __name__ == "__main__":
"""
PAGES = 10 * 64 * 10**6 // os.sysconf("SC_PAGE_SIZE")


def printed(tmp_path: Path, body: str, **variables: str) -> list[int]:
    """The numbers that a new process with ``COUNT`` and ``body`` as its script prints."""
    script = tmp_path / "count.py"
    script.write_text(COUNT + "".join(f"    {line}\n" for line in body.splitlines()))
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


@on_glibc
def test_scripts_and_their_workers_ask_the_system_for_memory_once(tmp_path) -> None:
    """Before, inside an entry script, in a worker that is no fork of it; tensors too."""
    body = """
print(faults(plain), faults(tensor))
run(lambda: print(faults(plain), faults(tensor)))
for kind in "fork", "spawn":
    with get_context(kind).Pool(1, start_worker, (0,)) as pool:
        print(pool.apply(faults, (plain,)))
"""
    found = printed(tmp_path, body.strip())
    assert min(found[:2]) > PAGES // 2, "the allocator kept its memory by itself: a blind test"
    assert max(found[2:]) < min(found[:2]) / 2


@on_glibc
@pytest.mark.parametrize(
    "variables",
    [
        {"MALLOC_MMAP_THRESHOLD_": "1000000"},
        {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=3:glibc.malloc.mmap_threshold=1000000"},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_what_the_user_has_set_stays(tmp_path, variables) -> None:
    found = printed(tmp_path, "run(lambda: print(faults(plain)))", **variables)
    assert found[0] > PAGES // 2


def test_every_value_fits_mallopt() -> None:
    for threshold in (memory.TRIM, memory.MMAP):
        assert all(0 < value < 2**31 for value in threshold.values)
        assert list(threshold.values) == sorted(threshold.values, reverse=True)


@pytest.mark.parametrize(
    "limit, expected",
    [
        (2**31 - 1, (True, {-1: 2**31 - 1, -3: 1 << 30})),
        (32 << 20, (True, {-1: 2**31 - 1, -3: 32 << 20})),  # an older glibc
        (1, (False, {-1: 2**31 - 1})),
    ],
)
def test_a_refused_value_gives_way_to_a_smaller_one(monkeypatch, limit, expected) -> None:
    taken = {}

    def mallopt(number: int, value: int) -> int:
        accepted = number == -1 or value <= limit
        if accepted:
            taken[number] = value
        return int(accepted)

    for variable in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(variable)
    monkeypatch.setattr(memory, "_of_glibc", lambda name: mallopt)
    assert (memory.keep_freed_memory(), taken) == expected


@on_glibc
def test_workers_do_not_hold_what_was_freed_before_they_were_started(tmp_path) -> None:
    """MiB of freed tensors in the process, then in one forked from it and, meanwhile, in itself."""
    body = """
import torch
from util.runtime.workers import read_ahead
class Own(torch.utils.data.Dataset):
    def __len__(self): return 1
    def __getitem__(self, item):
        lines = open("/proc/self/smaps_rollup").read().splitlines()
        return {"mib": sum(int(l.split()[1]) for l in lines if l.startswith("Rss")) // 1024}
keep_freed_memory()
before = Own()[0]["mib"]
blocks = [torch.ones(1 << 16) for _ in range(3000)]
last = torch.ones(1 << 16)
del blocks
print(Own()[0]["mib"] - before)
for item in read_ahead(Own(), 1, batch_size=None):
    print(item["mib"] - before, Own()[0]["mib"] - before)
"""
    kept, *after = printed(tmp_path, body.strip())
    assert kept > 600, "the allocator gave it back by itself: a blind test"
    assert max(after) < 150


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_nothing_happens_without_glibc(monkeypatch, system) -> None:
    monkeypatch.setattr(sys, "platform", system)
    assert memory.keep_freed_memory() is False
    memory.return_freed_memory()


def test_it_is_never_set_by_an_import() -> None:
    """Calls stand inside functions: of the scripts' common start, of workers, of the benchmark."""
    callers = set()
    for path in [p for part in ("util", "model", "benchmark") for p in (ROOT / part).rglob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inside = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
        known = {id(call) for function in inside for call in ast.walk(function)}
        for call in ast.walk(tree):
            named = isinstance(call, ast.Name) and call.id == "keep_freed_memory"
            if named and isinstance(call.ctx, ast.Load):
                assert id(call) in known, path
                callers.add(path.relative_to(ROOT).as_posix())
    assert {"util/runtime/errors.py", "util/runtime/signals.py", "benchmark/__main__.py"} <= callers
