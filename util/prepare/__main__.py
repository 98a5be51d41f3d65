"""``python -m util.prepare pascal|coco|fss|demo --root DIR``: from archives to masks and lists.

Steps whose result is there and whole are skipped, so an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path

from util.config import Config, load_config
from util.config.folds import split_count
from util.data.index import scan, select
from util.data.sources import find_pairs
from util.prepare import coco, demo, fss, pascal
from util.prepare.steps import Prepared, Row, summary
from util.runtime import errors
from util.runtime.errors import FewShotError, Interrupted
from util.runtime.files import CannotWrite, user_path


def main(arguments: list[str] | None = None) -> None:
    """Prepare one data set and print what was found, and how to name it in a configuration.

    Raises:
        FewShotError: one sentence on what is missing or wrong; run again when it is mended.
    """
    options = vars(_parser().parse_args(arguments))
    dataset, root = options.pop("dataset"), options.pop("root")
    lists = options.pop("lists") or Path("lists") / dataset
    if not (root.is_dir() or dataset == "demo" or options["download"]):
        raise FewShotError(f"--root {root} is no folder")
    if options["workers"] < 1:
        raise FewShotError(f"--workers {options['workers']}: expected 1 or more")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        made = COMMANDS[dataset](root, lists, **options)
        keys = _keys(dataset, made.data_root, lists)
        rows = made.rows + fold_rows(dataset, keys)
    except KeyboardInterrupt as error:
        raise Interrupted("interrupted; run the same command again to go on") from error
    except (CannotWrite, OSError) as error:
        what = str(error)
        if isinstance(error, OSError):
            what = f"{error.filename or root}: {error.strerror or error}"
        hint = "; --out names a folder to write to" if dataset != "demo" else ""
        raise FewShotError(what + hint) from error
    print(summary(rows))
    print("--opts " + " ".join(f"{key} {value}" for key, value in keys.items()))


def fold_rows(dataset: str, keys: dict[str, str]) -> list[Row]:
    """How many pictures each split trains and is evaluated on; what the scan found is kept where
    training looks for it."""
    rows = []
    cfg = _config(dataset, keys, split=0)
    splits = [_config(dataset, keys, split) for split in range(split_count(cfg))]
    for mode in ("train", "test"):
        source = find_pairs(cfg, cfg.fold, mode)
        counts = scan(source)
        for each in splits:
            index = select(each, each.fold, mode, source, counts)
            rows.append(Row(f"split {each.split} {mode} pictures", len(index.entries)))
    return rows


def _keys(dataset: str, data_root: Path, lists: Path) -> dict[str, str]:
    """The configuration keys that name a prepared data set; class folders need no lists."""
    files = {f"{part}_list": lists / f"{part}.txt" for part in ("train", "val")}
    files = {} if dataset == "fss" else files
    return {"data_root": str(data_root)} | {key: str(path) for key, path in files.items()}


def _config(dataset: str, keys: dict[str, str], split: int) -> Config:
    path = Path(__file__).parents[2] / "config" / dataset / f"{dataset}.yaml"
    overrides = {**keys, "split": split}
    return load_config(path, [word for item in overrides.items() for word in item])


def _demo(root: Path, lists: Path, **options: int) -> Prepared:
    return Prepared(root, demo.prepare(root, lists, **options))


COMMANDS = {"pascal": pascal.prepare, "coco": coco.prepare, "fss": fss.prepare, "demo": _demo}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m util.prepare", description=__doc__)
    parsers = parser.add_subparsers(dest="dataset", required=True)
    cores = os.cpu_count() or 1
    for name in COMMANDS:
        add = parsers.add_parser(name).add_argument
        add("--root", type=user_path, required=True, help="where archives or unpacked folders lie")
        add("--lists", type=user_path, help=f"folder for the list files (default: lists/{name})")
        add("--workers", type=int, default=cores, help="processes (default: one a core)")
        if name == "demo":
            # The defaults are those of the function.
            for option, meaning in (
                ("train", "number of training pictures"),
                ("val", "number of validation pictures"),
                ("size", "side of a picture in pixels"),
                ("seed", "seed of all pictures"),
            ):
                add(f"--{option}", type=int, default=argparse.SUPPRESS, help=meaning)
            continue
        add("--out", type=user_path, help="the data_root to be made (default: --root)")
        add("--download", action="store_true", help="fetch what is missing and has an address")
        if name == "coco":
            meaning = "as behind the published numbers (first polygons only), or whole objects"
            add("--masks", choices=coco.MASK_RULES, default=coco.MASK_RULES[0], help=meaning)
    return parser


if __name__ == "__main__":
    errors.run(main)
