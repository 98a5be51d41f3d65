"""torchrun starts failed processes anew (``--max-restarts``): not those whose failure is final.

torchrun cannot tell a node that died from a mistake in a configuration. A process that ends with a
final status therefore leaves a note, and what torchrun starts in its place ends at once with the
same status.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def note_final(status: int) -> None:
    """Leave a note that this process must not be started anew; nothing without restarts."""
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)):
        _note().write_text(str(status), encoding="ascii")


def final_status() -> int | None:
    """The status that the process in whose place this one was started ended with for good."""
    if not int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)):
        return None
    note = _note()
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        note.unlink(missing_ok=True)  # of another run that had the same process number
        return None
    return int(note.read_text(encoding="ascii")) if note.exists() else None


def _note() -> Path:
    """A file for the processes that one torchrun, their parent, has started on this machine."""
    name = f"fewshot-{os.getuid()}-{os.environ.get('TORCHELASTIC_RUN_ID', '')}-{os.getppid()}"
    return Path(tempfile.gettempdir(), name.replace(os.sep, "_"))
