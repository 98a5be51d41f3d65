"""SIGTERM and SIGINT as a wish, not a blow: training saves at the next step and then leaves."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType

from util.runtime.memory import keep_freed_memory


class StopRequest:
    """``.asked`` turns true at the first SIGTERM or SIGINT; a second one ends the process at once.

    What comes within ``SAME_WISH`` seconds of the first is the same wish: Ctrl-C reaches a process
    from the terminal and again through the script that has started it. Use as a context manager:
    the previous handlers come back at the end.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)
    SAME_WISH = 2.0

    def __init__(self) -> None:
        self.asked = False
        self.name = ""
        self._since = 0.0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        for number in self.SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.asked:
            self.asked, self.name = True, signal.Signals(number).name
            self._since = time.monotonic()
        elif time.monotonic() - self._since > self.SAME_WISH:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


def start_worker(_: int) -> None:
    """``worker_init_fn``: a worker process ends when its main process says so, and only then.
    It keeps freed memory like its main process, from which not every system forks it.

    Ctrl-C and a batch system's SIGTERM reach workers too, but the main process needs them until
    its last step. Its own SIGTERM (a pool that is torn down) is told apart by the sender.
    """
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS: SIGTERM ends workers there
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
