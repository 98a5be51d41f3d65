"""The project's own error type and the exit statuses of its commands."""

from __future__ import annotations

import sys
from collections.abc import Callable

from util.runtime.memory import keep_freed_memory
from util.runtime.restarts import final_status, note_final

EXIT_USER = 2
EXIT_NONFINITE = 3
EXIT_INTERRUPTED = 75


class FewShotError(Exception):
    """A mistake in the user's input: one sentence that names the file or key, no traceback."""

    status = EXIT_USER
    final = True  # the same command would fail in the same way

    def __str__(self) -> str:
        return one_line(super().__str__())


class NonFiniteLoss(FewShotError):
    """Training met a loss that is not a number; names the iteration, files and last checkpoint."""

    status = EXIT_NONFINITE


class Interrupted(FewShotError):
    """SIGTERM or SIGINT arrived; the state was saved and the run can be resumed."""

    status = EXIT_INTERRUPTED
    final = False


class LostProcess(FewShotError):
    """Another process of this run, or one that reads pictures for it, has died."""

    final = False


def run(main: Callable[[], None]) -> None:
    """Run an entry script's ``main``; turn a :class:`FewShotError` into one line and its status."""
    if status := final_status():
        sys.exit(status)
    keep_freed_memory()
    try:
        main()
    except FewShotError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        if error.final:
            note_final(error.status)
        sys.exit(error.status)
    except SystemExit as end:  # told by another process (util.distributed.fail)
        if end.code in (EXIT_USER, EXIT_NONFINITE):
            note_final(end.code)
        raise


def one_line(error: object) -> str:
    """The text of an error for the screen: names out of foreign files may hold line breaks, or
    commands to the terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in str(error))
