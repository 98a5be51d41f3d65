"""Whether this machine can serve the web page, and gradio, which serves it."""

from __future__ import annotations

import os
import resource
import socket
from pathlib import Path
from typing import Any

from util.predict.page import CACHE
from util.runtime.errors import FewShotError, too_many_files

MIN_FILES = 128  # that a page with a few visitors has open


def gradio_in(folder: Path) -> Any:
    """The gradio module, told before its import to write to ``folder`` and to call nobody."""
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HOME"] = os.environ["MPLCONFIGDIR"] = str(folder / CACHE)
    try:
        import gradio
    except ImportError as error:
        raise FewShotError(
            "the web page needs gradio: pip install -r requirements-app.txt"
        ) from error
    return gradio


def port_number(text: str) -> int:
    """A port as the command line names it."""
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 1 << 16):
        raise FewShotError(f"--port {text}: a port is a number from 1 to 65535")
    return int(text)


def check_machine(port: int) -> None:
    """Raise FewShotError, before a model is loaded, when the page could not be served."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files < MIN_FILES:
        raise FewShotError(f"{too_many_files()}; the page needs {MIN_FILES}")
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    except OSError as error:
        raise FewShotError(
            f"cannot serve on port {port} ({error.strerror}); --port names another"
        ) from error
