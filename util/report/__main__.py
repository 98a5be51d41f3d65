"""One table a data set and shot out of all results.

    python -m util.report [--exp exp] [--output DIR]
    python -m util.report spread 1k.json 10k.json --output spread.png
    python -m util.report table hdmnet-table3                    (papers.py)
    python -m util.report sheet A.pth B.pth --output sheet.png   (sheet.py)
    python -m util.report curves RUN RUN --output curves.png     (curves.py)

Reads every JSON file below ``--exp`` that ``test.py`` wrote as a result, under whatever name, and
prints Markdown, in per cent; ``--output`` adds ``report.md``, ``report.csv`` and ``report.png``.
Results with supports of another class and run records are passed over; any other file that is no
result is named in a warning. ``spread`` prints and draws how much the runs of evaluations with
different numbers of episodes differ; ``table`` a table of a paper, measured beside published;
``sheet`` episodes with several checkpoints side by side; ``curves`` how runs learned.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from util.report.curves import add_curves, curves
from util.report.papers import add_table, draw
from util.report.sheet import add_sheet, sheet
from util.report.spread import add_spread, compare
from util.report.tables import chart, comma_separated, gather, markdown, with_published
from util.runtime.errors import FewShotError, one_line, run
from util.runtime.files import user_path, write_atomically


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m util.report", description=__doc__.split("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", metavar="spread|table|sheet|curves")
    for add_command in (add_spread, add_table, add_sheet, add_curves):
        add_command(commands)
    parser.add_argument("--exp", type=user_path, default=Path("exp"), metavar="DIR",
                        help="folder of the results (exp)")  # fmt: skip
    parser.add_argument(
        "--output", type=user_path, metavar="DIR", help="write md, csv and png there"
    )
    options = parser.parse_args(arguments)
    others = {"spread": compare, "sheet": sheet, "curves": curves}
    others["table"] = lambda chosen: draw(chosen.name, chosen)
    if options.command:
        others[options.command](options)
        return
    tables, problems = gather(options.exp)
    for problem in problems:
        print(f"warning: {one_line(problem)}; left out", file=sys.stderr)
    if not tables:
        raise FewShotError(f"no result of test.py below {options.exp}")
    tables = with_published(tables)
    text = markdown(tables)
    print(text, end="")
    if options.output:
        files = {
            "report.md": text.encode("utf-8", "backslashreplace"),
            "report.csv": comma_separated(tables).encode("utf-8", "backslashreplace"),
            "report.png": chart(tables),
        }
        write(options.output, files)


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write ``files`` into ``folder`` and say so."""
    for name, content in files.items():
        write_atomically(folder / name, content)
    print(f"\nwritten: {', '.join(str(folder / name) for name in files)}")


if __name__ == "__main__":
    run(main)
