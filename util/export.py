"""The learned part of a few-shot model alone, to hand on.

python -m util.export exp/pascal/HDMNet/split0/resnet50/1shot/best.pth hdmnet_pascal0.pth
"""

from __future__ import annotations

import argparse

from util.runtime.errors import run
from util.runtime.files import user_path
from util.weights.export import export


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=user_path)
    parser.add_argument("output", type=user_path)
    parser.add_argument(
        "--over",
        choices=("base", "encoder"),
        default="base",
        help="what the file needs besides: encoder and base learner, or the encoder alone",
    )
    parser.add_argument("--half", action="store_true", help="half precision, half the room")
    args = parser.parse_args()
    size = export(args.checkpoint, args.output, args.over, args.half)
    print(f"{args.output}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    run(main)
