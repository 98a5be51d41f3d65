"""A trained model to hand on: the learned part alone, or the whole for machines without PyTorch.

python -m util.export exp/pascal/HDMNet/split0/resnet50/1shot/best.pth hdmnet_pascal0.pth
python -m util.export onnx [--weight best.pth] --output exported/
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from util.runtime.errors import run
from util.runtime.files import user_path
from util.weights.export import export
from util.weights.load import model_for_pictures
from util.weights.onnx_about import WEIGHTS


def learned(arguments: Sequence[str]) -> None:
    """The learned part, to be put over an encoder or base learner that the other has."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=user_path)
    parser.add_argument("output", type=user_path)
    parser.add_argument(
        "--over",
        choices=("base", "encoder"),
        default="base",
        help="what the file needs besides: encoder and base learner, or the encoder alone",
    )
    parser.add_argument("--half", action="store_true", help="half precision, half the room")
    args = parser.parse_args(arguments)
    size = export(args.checkpoint, args.output, args.over, args.half)
    print(f"{args.output}: {size / 1e6:.1f} MB")


def onnx(arguments: Sequence[str]) -> None:
    """The whole model as two ONNX files."""
    from util.weights.onnx import export_onnx

    parser = argparse.ArgumentParser(
        prog="python -m util.export onnx", description="The whole model as two ONNX files."
    )
    parser.add_argument(
        "--weight",
        type=user_path,
        metavar="FILE",
        help="checkpoint; default: the model for photographs that ships",
    )
    parser.add_argument(
        "--config",
        type=user_path,
        metavar="FILE",
        help="YAML configuration; default: the one in the checkpoint",
    )
    parser.add_argument(
        "--head", choices=("final", "meta"), help="what prediction takes; default: as predict.py"
    )
    parser.add_argument(
        "--output", type=user_path, required=True, metavar="DIR", help="folder of the two files"
    )
    parser.add_argument(
        "--weights",
        choices=WEIGHTS,
        default=WEIGHTS[0],
        help="as what they are stored; the arithmetic is float32 (docs/onnx.md)",
    )
    parser.add_argument(
        "--opts", nargs="*", action="extend", default=[], metavar="KEY VALUE", help="settings"
    )
    args = parser.parse_args(arguments)
    cfg, weight, head = model_for_pictures(args.config, args.weight, args.head, args.opts)
    written = export_onnx(cfg, weight, args.output, args.weights, head, photographs())
    for name, size in written.sizes.items():
        print(f"{args.output / name}: {size / 1e6:.1f} MB")
    for what, difference in written.differences.items():
        print(f"onnxruntime against PyTorch on {what}: {difference:.1e} of the largest value")


def photographs() -> list[Any]:
    """Photographs that a package carries, with a mask each; none where it is not installed."""
    from util.predict.examples import package_examples

    examples = package_examples()
    if examples is None:
        return []
    pairs = [support.pixels() for support in examples.supports]
    return pairs if len(pairs) > 1 else []


def main() -> None:
    words = sys.argv[1:]
    if words[:1] == ["onnx"]:
        onnx(words[1:])
    else:
        learned(words)


if __name__ == "__main__":
    run(main)
