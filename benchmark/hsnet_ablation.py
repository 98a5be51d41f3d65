"""HSNet's kernels, beside table 5 of its paper: parameters, time, memory, operations.

python -m benchmark.hsnet_ablation [--backbone resnet101] [--size 400] [--device cpu]

What is measured is everything behind the backbone (correlation, squeezing, mixing, decoder) in one
evaluation of one episode, 1 shot, with the same picture for every kernel. The center-pivot kernel
is measured in its textbook and in its efficient form.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch

from benchmark.cases import episodes
from benchmark.measure import alternate, machine, medians, operations, peak_memory
from model import build_model
from model.fewshot import split_shots
from util.config import load_config
from util.runtime.memory import keep_freed_memory

CONFIG = "config/pascal/pascal_split0_{}_hsnet.yaml"
FORMS = {
    "full 4D": ("full", "textbook"),
    "separable 4D": ("separable", "textbook"),
    "center-pivot": ("center_pivot", "textbook"),
    "center-pivot, fast": ("center_pivot", "fast"),
}
# Table 5 of the paper, ResNet-101 at 400², on its authors' GPU and implementation: millions of
# parameters, ms, GB, 10⁹ operations. It does not say how its separable kernel is built, nor
# whether a multiply-add counts one operation or two.
PAPER = {
    "full 4D": (11.3, 512.17, 4.12, 702.35),
    "separable 4D": (4.4, 28.48, 1.50, 28.40),
    "center-pivot": (2.6, 25.51, 1.39, 20.56),
}
OBJECT_SHARE = 0.2


def kernels(backbone: str, size: int, device: torch.device, repeats: int = 3) -> list[dict]:
    """One row for each form; a multiply-add counts two operations."""
    data = episodes(size, 1, 1, device, OBJECT_SHARE)
    calls, parameters = {}, {}
    for form, (kernel, compute) in FORMS.items():
        torch.manual_seed(0)
        overrides = ["kernel4d", kernel, "compute", compute]
        model = build_model(load_config(CONFIG.format(backbone), overrides)).to(device).eval()
        model.derive()
        parameters[form] = sum(p.numel() for p in model.parameters() if p.requires_grad)
        query = model.encode_query(data["query_image"])
        support = model.encode_support(data["support_images"][:, 0], data["support_masks"][:, 0])
        calls[form] = partial(_match, model, query, split_shots(support, 1), size)
    times = medians(alternate(calls, device, repeats))
    rows = []
    for form, call in calls.items():
        paper = PAPER.get(form, (None,) * 4)
        rows.append(
            {
                "kernel": form,
                "parameters (10^6)": parameters[form] / 1e6,
                "paper": paper[0],
                "ms": 1e3 * times[form],
                "paper's ms": paper[1],
                "peak_mib": peak_memory(call, device),
                "paper's GB": paper[2],
                "gflop": operations(call) / 1e9,
                "paper's gflop": paper[3],
            }
        )
    return rows


def _match(model, query, support, size):
    with torch.no_grad():
        return model.match(query, support, (size, size))


def main() -> None:
    from benchmark.__main__ import table

    parser = argparse.ArgumentParser(
        prog="python -m benchmark.hsnet_ablation", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--backbone", default="resnet101", choices=("resnet50", "resnet101", "vgg16")
    )
    parser.add_argument("--size", type=int, default=400, help="side of the pictures")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    keep_freed_memory()
    device = torch.device(args.device)
    print("; ".join(f"{key} {value}" for key, value in machine(device).items()))
    print(f"HSNet {args.backbone}, {args.size}², 1 shot, object share {OBJECT_SHARE:.0%}\n")
    print(table(kernels(args.backbone, args.size, device)))


if __name__ == "__main__":
    main()
