"""The project's own error type and the exit statuses of its commands."""

from __future__ import annotations

import sys
from collections.abc import Callable

EXIT_USER = 2
EXIT_NONFINITE = 3
EXIT_INTERRUPTED = 75


class FewShotError(Exception):
    """A mistake in the user's input: one sentence that names the file or key, no traceback."""

    status = EXIT_USER

    def __str__(self) -> str:
        return one_line(super().__str__())


class NonFiniteLoss(FewShotError):
    """Training met a loss that is not a number; names the iteration, files and last checkpoint."""

    status = EXIT_NONFINITE


class Interrupted(FewShotError):
    """SIGTERM or SIGINT arrived; the state was saved and the run can be resumed."""

    status = EXIT_INTERRUPTED


def run(main: Callable[[], None]) -> None:
    """Run an entry script's ``main``; turn a :class:`FewShotError` into one line and its status."""
    try:
        main()
    except FewShotError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.status)


def one_line(error: object) -> str:
    """The text of an error for the screen: names out of foreign files may hold line breaks, or
    commands to the terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in str(error))
