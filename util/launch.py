"""Start a script's processes on this machine: ``python -m util.launch GPUS SCRIPT [ARGUMENTS]``.

0 GPUs is one process on the CPU, 1 one process, N one process a GPU with the variables that
torchrun sets. It stands in for ``torchrun --standalone`` in the shell scripts because torchrun
turns every exit status into 1: here the status is that of the first process that failed (2 user
error, 3 non-finite loss, 75 saved and interrupted, 128 + n killed by signal n). Several machines
need torchrun itself; see docs/slurm.md.

SIGTERM, SIGINT and SIGHUP reach each process once, as SIGTERM. When a process fails the others
have ``GRACE`` seconds to end before they are killed.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

GRACE = 30.0
_POLL = 0.05
_SAME_WISH = 2.0  # Ctrl-C arrives twice: from the terminal and through the shell script


def launch(gpus: int, command: Sequence[str]) -> int:
    """Run ``command`` in ``max(gpus, 1)`` processes; the exit status to leave with."""
    with _reserved_port() as port:
        processes = [
            subprocess.Popen(command, env=environment, start_new_session=True)
            for environment in _environments(gpus, port.getsockname()[1])
        ]
        previous = _forward_signals(processes)
        try:
            return _watch(processes)
        finally:
            for process in processes:
                _kill_session(process)
            for number, handler in previous.items():
                signal.signal(number, handler)


def _reserved_port() -> socket.socket:
    """A socket on a free port, bound but not listening.

    Nobody else is given the port while the socket lives, and torch's store can still listen on it,
    since both allow the address to be reused.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    return holder


def _environments(gpus: int, port: int) -> list[dict[str, str]]:
    if gpus == 0:
        return [{**os.environ, "CUDA_VISIBLE_DEVICES": ""}]
    if gpus == 1:
        return [dict(os.environ)]
    threads = str(max(1, (os.cpu_count() or 1) // gpus))
    return [
        {
            "OMP_NUM_THREADS": threads,
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(gpus),
            "LOCAL_WORLD_SIZE": str(gpus),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        for rank in range(gpus)
    ]


def _forward_signals(processes: Sequence[subprocess.Popen]) -> dict[int, object]:
    last = [-_SAME_WISH]

    def forward(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - last[0] >= _SAME_WISH:
            last[0] = now
            for process in processes:
                process.terminate()

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    return {number: signal.signal(number, forward) for number in numbers}


def _watch(processes: Sequence[subprocess.Popen]) -> int:
    """Wait for all; the first failure's status, or 0."""
    status = 0
    deadline = float("inf")
    while any(process.poll() is None for process in processes):
        failed = next((p.returncode for p in processes if p.returncode), 0)
        if failed and not status:
            status, deadline = failed, time.monotonic() + GRACE
        if time.monotonic() > deadline:
            print(
                f"error: a process failed and the others did not end within {GRACE:.0f} s; "
                "they are killed",
                file=sys.stderr,
                flush=True,
            )
            for process in processes:
                _kill_session(process)
            deadline = float("inf")
        time.sleep(_POLL)
    status = status or next((p.returncode for p in processes if p.returncode), 0)
    return status if status >= 0 else 128 - status


def _kill_session(process: subprocess.Popen) -> None:
    """End a process and the workers that it may have left behind."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def interpreter() -> str | None:
    """This Python when it has torch, else that of ``.venv`` (``make install``), else None."""
    if importlib.util.find_spec("torch"):
        return sys.executable
    own = os.path.abspath(".venv/bin/python")
    return own if os.access(own, os.X_OK) else None


def main() -> int:
    if len(sys.argv) < 3 or not sys.argv[1].isdigit():
        print("usage: python -m util.launch GPUS SCRIPT [ARGUMENTS]", file=sys.stderr)
        return 2
    python = interpreter()
    if python is None:
        print(f"error: {sys.executable} has no torch; run 'make install' first", file=sys.stderr)
        return 2
    return launch(int(sys.argv[1]), [python, *sys.argv[2:]])


if __name__ == "__main__":
    sys.exit(main())
