"""Segment your own pictures from a few annotated ones.

    python predict.py --support mug1.jpg mug1.png mug --support desk.jpg box:40,60,200,180 mug \\
        --query photos/ --output out/ [--config FILE] [--weight FILE]
    python predict.py --onnx DIR ...    the same without PyTorch (docs/onnx.md)

The model for photographs that ships with the project is used unless another one is named.

Supports one by one (``--support IMAGE MASK [CLASS]``), or all that a folder, or an annotation file
of labelme or COCO, holds (``--supports PATH``).
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
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from util.data.annotations import annotation_file
from util.data.reading import read_image
from util.predict.arguments import add_model_arguments, between_0_and_1
from util.predict.files import claim, find_queries, finished, remove_outdated, stamp
from util.predict.refine import refined
from util.predict.supports import Support, supports_in, supports_named
from util.predict.threshold import class_scores, labels_at
from util.predict.writing import summarise, write_results
from util.runtime.errors import FewShotError, Interrupted, run
from util.runtime.files import expanded, write_json

if TYPE_CHECKING:
    from util.predict.base import Predictor

# -------------------------------------------------------------------------- what is done already


def fingerprint(
    supports: Sequence[Support], weights: Sequence[Path], settings: dict[str, Any]
) -> str:
    """Changes whenever results could: weights, supports (their content) and settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())

    @cache
    def content(path: Path) -> bytes:
        try:
            return hashlib.sha256(path.read_bytes()).digest()
        except OSError as error:
            raise FewShotError(f"cannot read {path}: {error.strerror}") from error

    for path in weights:
        digest.update(content(path))
    for support in supports:
        for path in support.files():
            digest.update(content(path))
        digest.update(os.fsencode(f"{support.mask}\0{support.class_name}\0"))
    return digest.hexdigest()[:16]


# ------------------------------------------------------------------------------------ the command


def predict_all(
    predictor: Predictor,
    queries: dict[str, Path],
    output: Path,
    run_id: str,
    threshold: float | None = None,
    refine: bool = False,
) -> dict[str, Any]:
    """Predict every query that is not finished; returns the summary over all of them.

    threshold: of the masks (:func:`~util.predict.threshold.labels_at`); None: the model decides.
    refine: whether their edges are those of the picture (:mod:`util.predict.refine`).

    A picture that cannot be read is noted under ``failed`` and the others go on.
    """
    pictures, failed, kept = [], {}, 0
    for name, path in tqdm(queries.items(), desc="predict", unit="picture"):
        summary = finished(output, name, run_id, path)
        if summary is None:
            known = stamp(path)  # of what is read now: a picture replaced meanwhile is another
            try:
                image = read_image(path)
            except FewShotError as error:
                failed[str(path)] = str(error)
                tqdm.write(f"left out: {error}")
                continue
            result = predictor.predict(image)
            if threshold is not None:
                scores = class_scores(result.probabilities)
                mask = labels_at(scores, threshold, result.not_found)
                result = result._replace(mask=mask)
            if refine:
                result = result._replace(mask=refined(image, result.mask))
            files = write_results(output, name, image, result)
            remove_outdated(output, name, files)
            summary = summarise(path, result) | {
                "results": [file.relative_to(output).as_posix() for file in files],
                "stamp": known,
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


def model_files(
    options: argparse.Namespace,
) -> tuple[list[Path], dict[str, Any], Callable[[], Predictor]]:
    """The files of the model that is asked for, the settings that are its own, and what loads it.

    PyTorch is imported where it is needed.
    """
    if options.onnx is None:
        from util.predict.predictor import FewShotPredictor
        from util.weights.load import is_shipped, knows_shapes_only, model_for_pictures

        cfg, weight, head = model_for_pictures(
            options.config, options.weight, options.head, options.opts
        )
        if note := knows_shapes_only(cfg):
            print(note, file=sys.stderr)
        settings = {"config": cfg.to_dict(), "head": head, "refine": is_shipped(weight)}
        if options.presence is not None:
            settings["presence"] = options.presence
        load = partial(
            FewShotPredictor.from_config, cfg, weight, options.device, head, options.presence
        )
        return [weight], settings, load
    from util.predict.onnx import OnnxPredictor
    from util.weights.onnx_about import both

    for name in ("config", "weight", "device", "opts", "presence"):
        if getattr(options, name) not in (None, []):
            raise FewShotError(f"--onnx takes the model as it was exported, without --{name}")
    settings = {"head": options.head, "refine": False}
    return both(options.onnx), settings, partial(OnnxPredictor, options.onnx, options.head)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config",
        type=expanded,
        metavar="FILE",
        help="YAML configuration; default: the one in the checkpoint, or the model that ships",
    )
    parser.add_argument(
        "--weight", type=expanded, metavar="FILE", help="checkpoint; default: what test.py takes"
    )
    parser.add_argument(
        "--onnx",
        type=expanded,
        metavar="DIR",
        help="instead of both: what util.export onnx wrote; PyTorch is not needed then",
    )
    parser.add_argument(
        "--support",
        nargs="+",
        action="append",
        default=[],
        metavar=("IMAGE", "MASK"),
        help="IMAGE MASK [CLASS]; MASK is a file, mask.png#LABEL, box:x0,y0,x1,y1 or the .json of "
        "labelme or COCO",
    )
    parser.add_argument(
        "--supports",
        type=expanded,
        nargs="+",
        action="extend",
        default=[],
        metavar="PATH",
        help="a folder with one folder per class, or with pictures and the .json of labelme or "
        "COCO; or such a .json",
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
        "--threshold",
        type=between_0_and_1("--threshold", "threshold", ends=False),
        metavar="T",
        help="probability above which a pixel counts, between 0 and 1; default: the model decides",
    )
    add_model_arguments(parser)
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    weights, settings, load = model_files(options)
    read = cache(annotation_file)
    supports: list[Support] = []
    for path in options.supports:
        found, left_out = supports_in(Path(path), read)
        supports += found
        for line in left_out:
            print(line, file=sys.stderr)
    for values in options.support:
        supports += supports_named(values, read)
    if not supports:
        raise FewShotError("no supports: give --support IMAGE MASK [CLASS] or --supports PATH")
    output = Path(options.output)
    queries, passed_over = find_queries(options.query, output)
    for what, among in (("results, not queries", True), ("of kinds to be named one by one", False)):
        if told := [str(path) for path in passed_over if path.is_dir() == among]:
            print(f"{what}: {', '.join(told)}", file=sys.stderr)
    if options.threshold is not None:
        settings["threshold"] = options.threshold
    if options.refine is not None:
        settings["refine"] = options.refine
    run_id = fingerprint(supports, weights, settings)
    held = claim(output, queries, run_id)

    predictor = load()
    for support in tqdm(supports, desc="supports", unit="picture"):
        predictor.add_support(
            support.image, class_name=support.class_name, **support.annotation(read)
        )
    try:
        summary = predict_all(
            predictor, queries, output, run_id, options.threshold, settings["refine"]
        )
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
