"""The project's own error type and the exit statuses of its commands."""

from __future__ import annotations

import errno
import io
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from util.runtime.memory import keep_freed_memory
from util.runtime.restarts import final_status, note_final

NO_FILES_LEFT = (errno.EMFILE, errno.ENFILE)
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
    """SIGTERM or SIGINT arrived; what a run had done is saved and the same command goes on."""

    status = EXIT_INTERRUPTED
    final = False


class LostProcess(FewShotError):
    """Another process of this run, or one that reads pictures for it, has died."""

    final = False


@contextmanager
def told_of(what: object) -> Iterator[None]:
    """Turn a ValueError, as models raise for options and sizes, into a sentence about ``what``."""
    try:
        yield
    except ValueError as error:
        raise FewShotError(f"{what}: {error}") from error


def run(main: Callable[[], None]) -> None:
    """Run an entry script's ``main``; turn a :class:`FewShotError` into one line and its status.

    What the screen's encoding lacks is written as its escape (``\\xb1``): no sign in a table or in
    a file's name ends a command that has done its work.
    """
    if status := final_status():
        sys.exit(status)
    keep_freed_memory()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            main()
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise FewShotError(f"{error.filename!s:.80}...: the name is too long") from error
            if error.errno not in NO_FILES_LEFT:
                raise
            raise FewShotError(too_many_files()) from error
        except UnicodeEncodeError as error:  # of a path, in a locale that knows few letters
            raise FewShotError(
                f"'{error.object:.80}' has letters that this locale ({error.encoding}) has not: "
                "set PYTHONUTF8=1, or LC_ALL=C.UTF-8"
            ) from error
        except KeyboardInterrupt as error:  # where nobody waits for signals (StopRequest)
            raise Interrupted("interrupted") from error
    except FewShotError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        if error.final:
            note_final(error.status)
        sys.exit(error.status)
    except SystemExit as end:  # told by another process (util.runtime.distributed.fail)
        if end.code in (EXIT_USER, EXIT_NONFINITE):
            note_final(end.code)
        raise


def too_many_files() -> str:
    """What to do when a process may open no more files."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return (
        f"too many open files: this process may have {limit} (ulimit -n shows it); raise the limit "
        "with 'ulimit -n 4096' before the command, or use fewer data-loading processes "
        "(--opts workers 0)"
    )


def one_line(error: object) -> str:
    """The text of an error for the screen: names out of foreign files may hold line breaks, or
    commands to the terminal. A byte of a name that is not UTF-8 is shown as ``\\xe9``."""
    return "".join(map(_shown, str(error)))


def _shown(letter: str) -> str:
    if 0xDC80 <= ord(letter) <= 0xDCFF:  # how Python holds such a byte (PEP 383)
        return f"\\x{ord(letter) - 0xDC00:x}"
    return letter if letter.isprintable() else " "
