"""What a run tells: lines on the screen and in ``train.log``, TensorBoard events, ``run.json``.

Only the main process writes. Events are written directly, not through a thread with a queue: a
full disk is then an error at once, not a training run that waits for ever.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from util.config import Config
from util.runtime import distributed
from util.runtime.errors import FewShotError
from util.runtime.files import file_name
from util.runtime.record import write_run_record


class RunLog:
    """Log of one run in ``folder``; silent in processes other than the main one.

    ``first_step``: where a resumed run goes on; TensorBoard drops what an interrupted run had
    written beyond it. Without tensorboardX there are no event files, which the log says.
    """

    def __init__(self, folder: Path, first_step: int = 0, quiet: bool | None = None) -> None:
        self.folder = Path(folder)
        self._quiet = not distributed.is_main() if quiet is None else quiet
        self._events = None if self._quiet else self._open_events(first_step)

    def _open_events(self, first_step: int) -> Any:
        try:
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto import event_pb2
        except ImportError:
            self.say("tensorboardX is not installed: no TensorBoard files")
            return None
        self._pb = event_pb2
        try:
            (self.folder / "tensorboard").mkdir(parents=True, exist_ok=True)
            prefix = self.folder / "tensorboard" / "events"
            events = EventsWriter(str(prefix), filename_suffix=f".{first_step}.{time.time_ns()}")
        except OSError as error:
            raise self._unwritable("tensorboard", error) from error
        if first_step:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            events.write_event(
                event_pb2.Event(step=first_step + 1, wall_time=time.time(), session_log=start)
            )
        return events

    def say(self, text: str) -> None:
        """A line on the screen (above progress bars) and, with the time, in ``train.log``."""
        if self._quiet:
            return
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
        try:
            place = self.folder / "train.log"
            with open(place, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        except OSError as error:
            raise self._unwritable("train.log", error) from error

    def scalars(self, values: Mapping[str, float | None], step: int) -> None:
        """TensorBoard scalars; None and not-a-number are left out."""
        if self._events is None:
            return
        from tensorboardX.summary import scalar

        for name, value in values.items():
            if value is not None and math.isfinite(value):
                self._write(scalar(name, value), step)

    def picture(self, name: str, rgb: np.ndarray, step: int) -> None:
        """TensorBoard picture: uint8 RGB [H, W, 3]."""
        if self._events is None:
            return
        from tensorboardX.summary import image

        # A slash groups pictures; a tag takes few other signs.
        name = "/".join(map(file_name, name.split("/", 1)))
        self._write(image(name, rgb, dataformats="HWC"), step)

    def _write(self, summary: Any, step: int) -> None:
        try:
            self._events.write_event(
                self._pb.Event(step=step, wall_time=time.time(), summary=summary)
            )
            self._events.flush()
        except OSError as error:
            raise self._unwritable("tensorboard", error) from error

    def _unwritable(self, name: str, error: OSError) -> FewShotError:
        return FewShotError(f"cannot write {self.folder / name}: {error.strerror or error}")

    def run_json(self, cfg: Config, **facts: Any) -> None:
        """``run.json``, see :func:`write_run_record`."""
        if not self._quiet:
            write_run_record(self.folder / "run.json", cfg.to_dict(), **facts)

    def close(self) -> None:
        """Finish the event file."""
        if self._events is not None:
            self._events.close()
