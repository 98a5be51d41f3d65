"""What the command line and the page are asked alike."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from util.runtime.errors import FewShotError


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """``--head``, ``--presence``, ``--refine``, ``--device``, ``--opts``."""
    add = parser.add_argument
    add(
        "--head",
        choices=("final", "meta"),
        help="meta: without the base learner, which suppresses the classes it was trained on; "
        "default: meta for the model that ships, final for others",
    )
    add(
        "--presence",
        type=between_0_and_1("--presence", "presence", ends=True),
        metavar="P",
        help="how likely a picture must show a class for it to be painted, 0 to 1; default: fitted "
        "with the model, 0 leaves presence out",
    )
    add(
        "--refine",
        action=argparse.BooleanOptionalAction,
        help="move edges to those of the picture (GrabCut); default: for the model that ships",
    )
    add("--device", help="cpu, cuda, cuda:1, ...; default: a GPU when there is one")
    add("--opts", nargs="*", action="extend", default=[], metavar="KEY VALUE", help="settings")


def between_0_and_1(option: str, what: str, ends: bool) -> Callable[[str], float]:
    """Reads a number of the command line; ``ends``: whether it may be 0 or 1."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not (0 <= value <= 1 if ends else 0 < value < 1):
            raise FewShotError(f"{option} {text}: a {what} lies between 0 and 1")
        return value

    return read
