"""What ``make demo`` needs beside the entry scripts: its closing table, its small encoder file.

    python -m util.demo table --results exp/.../result.json --swapped exp/.../swapped.json
    python -m util.demo encoder --checkpoint exp/.../best.pth --output assets/demo_encoder.pth
    python -m util.demo photographs --output exp/photographs.jpg

The table sets the model beside two baselines on the same episodes, calling everything object and
the prior mask at its best threshold, and beside itself with supports of another class.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from util.data.transform import read_image
from util.draw.files import write_jpeg
from util.draw.overlays import class_colour, label_overlay, overlay
from util.draw.panels import fit
from util.draw.panels import grid as sheet_of
from util.evaluate import grid, percent
from util.predict.examples import package_examples
from util.predict.predictor import FewShotPredictor
from util.predict.refine import refined
from util.report.tables import read_result
from util.runtime.errors import FewShotError, run
from util.runtime.files import refuse_input, user_path, write_atomically
from util.weights.checkpoint import read_checkpoint, serialise

SIDE = 320  # pixels of a photograph on the sheet
BASELINES = {"all_foreground": "all foreground", "prior": "prior mask, best threshold"}
MARGIN = 0.15  # what the demo promises: this much above the better baseline ...
SUPPORT = 0.25  # ... and this much lost with supports of another class


def table(results: list[dict[str, Any]], swapped: dict[str, Any]) -> str:
    """mIoU and FB-IoU over the held-out classes, in per cent, and the two promised differences.

    results: contents of ``test.py --output``, the first with ``--baselines``; swapped: that of the
    first model with ``--swap-supports``.
    """
    first = results[0]
    if not first.get("baselines") or not swapped.get("swapped_supports"):
        raise FewShotError("the demo's table needs test.py --baselines and test.py --swap-supports")
    rows = [["prediction", "mIoU", "FB-IoU"]]
    for result in results:
        for key, name in (("", "final"), ("_meta", "meta")):
            if result["mean"][f"miou{key}"] is not None:
                rows.append(_row(f"{result['arch']} {name}", result["mean"], key))
    baselines = {name: first["baselines"][key] for key, name in BASELINES.items()}
    rows += [_row(name, found) for name, found in baselines.items() if found]
    rows.append(_row(f"{first['arch']} final, supports of another class", swapped["mean"]))

    final = first["mean"]["miou"]
    better = max(found["miou"] for found in baselines.values() if found)
    return "\n".join(
        [
            f"{first['dataset']} split {first['split']}, {first['shot']} shot, novel classes: "
            f"{first['episodes']} episodes x {len(first['runs'])} seeds, per cent",
            "",
            grid(rows),
            "",
            _difference("above the better baseline", final - better, MARGIN),
            _difference("lost with supports of another class", final - swapped["mean"]["miou"],
                        SUPPORT),
        ]
    )  # fmt: skip


def _row(name: str, scores: dict[str, Any], key: str = "") -> list[str]:
    return [name, percent(scores[f"miou{key}"]), percent(scores[f"fb_iou{key}"])]


def _difference(what: str, value: float, promised: float) -> str:
    word = "as promised" if value >= promised else "LESS than promised"
    return f"{what}: {100 * value:.1f} points ({word}: at least {100 * promised:.0f})"


def export_encoder(checkpoint: Path, output: Path) -> None:
    """Write what stage 2 needs of a stage-1 checkpoint: the weights, no optimiser, no history."""
    refuse_input(output, checkpoint)
    content = read_checkpoint(checkpoint)
    if content.get("arch") != "PSPNet":
        raise FewShotError(f"{checkpoint} is no stage-1 checkpoint (train_base.py writes them)")
    kept = {k: content[k] for k in ("format", "arch", "model", "config", "fold", "seen")
            if k in content}  # fmt: skip
    write_atomically(output, serialise(kept))


def photographs(output: Path) -> None:
    """Segment the photographs of installed packages with the model that ships: one sheet, supports
    above, queries below."""
    found = package_examples()
    if found is None:
        raise FewShotError("no photographs here: pip install -r requirements-app.txt carries them")
    predictor = FewShotPredictor.shipped()
    above, below = [], []
    for support in found.supports:
        image, mask = support.pixels()
        predictor.add_support(image, mask, support.class_name)
        number = predictor.classes.index(support.class_name) + 1
        marked = overlay(image, mask, class_colour(number))
        above.append((fit(marked, SIDE), f"support: {support.class_name}"))
    for path in found.queries:
        image = read_image(path)
        result = predictor.predict(image)
        told = ", ".join(
            f"{name}{' not found' if name in result.absent else ''} ({result.presence[name]:.0%})"
            for name in result.classes
        )
        mask = refined(image, result.mask)  # as predict.py does
        below.append((fit(label_overlay(image, mask), SIDE), told))
    write_jpeg(output, sheet_of([above, below], "The model for photographs that ships", SIDE))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m util.demo", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("table", help="print the demo's table")
    show.add_argument("--results", type=user_path, nargs="+", required=True, metavar="FILE.json")
    show.add_argument("--swapped", type=user_path, required=True, metavar="FILE.json")
    export = commands.add_parser("encoder", help="strip a stage-1 checkpoint down to its weights")
    export.add_argument("--checkpoint", type=user_path, required=True, metavar="FILE")
    export.add_argument("--output", type=user_path, required=True, metavar="FILE")
    sheet = commands.add_parser("photographs", help="segment the photographs of packages")
    sheet.add_argument("--output", type=user_path, required=True, metavar="FILE.jpg")
    args = parser.parse_args()
    if args.command == "photographs":
        photographs(args.output)
        print(f"photographs: {args.output}")
    elif args.command == "table":
        print(table([read_result(path) for path in args.results], read_result(args.swapped)))
    else:
        export_encoder(args.checkpoint, args.output)
        print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run(main)
