"""Segment your own pictures from a few annotated ones.

    python predict.py --config FILE [--weight FILE] \\
        --support mug1.jpg mug1.png mug --support desk.jpg box:40,60,200,180 mug \\
        --query photos/ --output out/

Supports one by one (``--support IMAGE MASK [CLASS]``) or as a folder a class (``--supports DIR``).
Every picture gets a label PNG, an overlay, a probability map a class, the correlation map of each
stage and a JSON summary. Run again, the same command goes on where it stopped. See docs/predict.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from util.config.folders import class_folders
from util.data.coco import CocoFile
from util.data.transform import read_image
from util.predict.files import claim, find_queries, finished, remove_outdated, stamp
from util.predict.predictor import FewShotPredictor
from util.predict.writing import summarise, write_results
from util.prepare.steps import LYING, picture_size
from util.runtime.errors import FewShotError, Interrupted, run
from util.runtime.files import expanded, user_path, write_json
from util.weights.load import model_of

# ---------------------------------------------------------------------------------------- supports


class Support:
    """One annotated picture as the command line names it.

    ``mask`` is the path of a mask, ``mask.png#7`` for one label of it, ``box:x0,y0,x1,y1``, or a
    COCO annotation file (``.json``), whose objects of category ``class_name`` are taken.
    """

    def __init__(self, image: Path, mask: str, class_name: str) -> None:
        self.image, self.mask, self.class_name = image, mask, class_name

    def annotation(self, read_coco: Callable[[Path], CocoFile] = CocoFile) -> dict[str, Any]:
        """Keyword arguments for :meth:`FewShotPredictor.add_support`.

        read_coco: reads a COCO file; many supports may share one, which can be large.
        """
        if self.mask.startswith("box:"):
            try:
                box = [float(value) for value in self.mask[4:].split(",")]
            except ValueError:
                box = []
            if len(box) != 4:
                raise FewShotError(f"'{self.mask}' is no box: write box:x0,y0,x1,y1 in pixels")
            return {"box": box}
        if self.mask.lower().endswith(".json"):
            return {"mask": self._from_coco(read_coco(Path(self.mask)))}
        path, label = self._labelled()
        return {"mask": path} if label is None else {"mask": path, "label": label}

    def _labelled(self) -> tuple[Path, int | None]:
        """The path of the mask, and the label that follows it (``mask.png#7``)."""
        path, _, label = self.mask.rpartition("#")
        asked = path and label.isascii() and label.isdecimal() and len(label) < 10
        return (Path(path), int(label)) if asked else (Path(self.mask), None)

    def _from_coco(self, annotations: CocoFile) -> np.ndarray:
        stored, orientation = picture_size(self.image)
        # As it is shown; a mask that fits the stored pixels alone is understood as such.
        sizes = [stored[::-1], stored] if orientation in LYING else [stored]
        mask, crowds = annotations.support_mask(self.image, self.class_name, sizes)
        if crowds:
            tqdm.write(
                f"left out: {crowds} crowd(s) of '{self.class_name}' on {self.image}, where "
                f"{annotations.path} has single objects too",
                file=sys.stderr,
            )
        return mask

    def files(self) -> list[Path]:
        """The files that it is read from."""
        if self.mask.startswith("box:"):
            return [self.image]
        return [self.image, self._labelled()[0]]


def support_folder(folder: Path) -> list[Support]:
    """Supports of a folder a class, see :func:`util.config.folders.class_folders`."""
    found = class_folders(folder)
    if found.passed_over:
        print(f"{folder}: no classes: {', '.join(found.passed_over)}", file=sys.stderr)
    return [
        Support(pair.image, str(pair.mask), name)
        for name, pairs in found.pairs.items()
        for pair in pairs
    ]


# -------------------------------------------------------------------------- what is done already


def fingerprint(supports: Sequence[Support], weight: Path, settings: dict[str, Any]) -> str:
    """Changes whenever results could: weights, supports (their content) and settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in (weight, *(file for support in supports for file in support.files())):
        try:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            raise FewShotError(f"cannot read {path}: {error.strerror}") from error
    for support in supports:
        digest.update(os.fsencode(f"{support.mask}\0{support.class_name}\0"))
    return digest.hexdigest()[:16]


# ------------------------------------------------------------------------------------ the command


def predict_all(
    predictor: FewShotPredictor, queries: dict[str, Path], output: Path, run_id: str
) -> dict[str, Any]:
    """Predict every query that is not finished; returns the summary over all of them.

    A picture that cannot be read is noted under ``failed`` and the others go on.
    """
    pictures, failed, kept = [], {}, 0
    for name, path in tqdm(queries.items(), desc="predict", unit="picture"):
        summary = finished(output, name, run_id, path)
        if summary is None:
            try:
                image = read_image(path)
            except FewShotError as error:
                failed[str(path)] = str(error)
                tqdm.write(f"left out: {error}")
                continue
            result = predictor.predict(image)
            files = write_results(output, name, image, result)
            remove_outdated(output, name, files)
            summary = summarise(path, result) | {
                "results": [file.relative_to(output).as_posix() for file in files],
                "stamp": stamp(path),
                "run": run_id,
            }
            # Last: it says that the picture is finished.
            write_json(output / "summary" / f"{name}.json", summary)
        else:
            kept += 1
        pictures.append({k: v for k, v in summary.items() if k not in ("stamp", "run")})
    return {
        "classes": {
            name: {"label": label, "supports": predictor.shots[name]}
            for label, name in enumerate(predictor.classes, start=1)
        },
        "output": predictor.output,
        "pictures": pictures,
        "failed": failed,
        "kept_from_earlier_call": kept,
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config",
        type=expanded,
        metavar="FILE",
        help="YAML configuration; default: the one in the checkpoint",
    )
    parser.add_argument(
        "--weight", type=expanded, metavar="FILE", help="checkpoint; default: what test.py takes"
    )
    parser.add_argument(
        "--support",
        nargs="+",
        action="append",
        default=[],
        metavar=("IMAGE", "MASK"),
        help="IMAGE MASK [CLASS]; MASK is a file, mask.png#LABEL, box:x0,y0,x1,y1 or a COCO .json",
    )
    parser.add_argument(
        "--supports", type=expanded, metavar="DIR", help="folder with a folder of supports a class"
    )
    parser.add_argument(
        "--query",
        type=expanded,
        nargs="+",
        required=True,
        metavar="PATH",
        help="pictures, folders or globs",
    )
    parser.add_argument(
        "--output", type=expanded, required=True, metavar="DIR", help="folder for the results"
    )
    parser.add_argument(
        "--head",
        choices=("final", "meta"),
        default="final",
        help="meta: without the base learner, which suppresses the classes it was trained on",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: a GPU when there is one")
    parser.add_argument(
        "--opts", nargs="*", action="extend", default=[], metavar="KEY VALUE", help="settings"
    )
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    cfg, weight = model_of(options.config, options.weight, options.opts)
    supports = support_folder(Path(options.supports)) if options.supports else []
    for values in options.support:
        if len(values) not in (2, 3):
            raise FewShotError(f"--support takes IMAGE MASK [CLASS], not {' '.join(values)}")
        supports.append(
            Support(user_path(values[0]), expanded(values[1]), (values + ["object"])[2])
        )
    if not supports:
        raise FewShotError("no supports: give --support IMAGE MASK [CLASS] or --supports DIR")
    output = Path(options.output)
    queries, passed_over = find_queries(options.query, output)
    if passed_over:
        print(f"results, not queries: {', '.join(map(str, passed_over))}", file=sys.stderr)
    run_id = fingerprint(supports, weight, {"config": cfg.to_dict(), "head": options.head})
    held = claim(output, queries, run_id)

    predictor = FewShotPredictor.from_config(cfg, weight, options.device, options.head)
    read_coco = cache(CocoFile)
    for support in tqdm(supports, desc="supports", unit="picture"):
        predictor.add_support(
            support.image, class_name=support.class_name, **support.annotation(read_coco)
        )
    try:
        summary = predict_all(predictor, queries, output, run_id)
    except KeyboardInterrupt:
        raise Interrupted("stopped; the same command goes on where it stopped") from None
    write_json(output / "summary.json", summary)
    held.close()
    print(f"{len(summary['pictures'])} pictures in {output} (summary.json lists the areas)")
    if summary["failed"]:
        raise FewShotError(
            f"{len(summary['failed'])} of {len(queries)} pictures were left out; the first: "
            + next(iter(summary["failed"].values()))
        )


if __name__ == "__main__":
    run(main)
