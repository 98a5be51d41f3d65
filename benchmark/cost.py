"""What stands behind a network's encoder: parameters, operations, time and memory of one episode.

python -m benchmark.cost --config FILE [--opts KEY VALUE ...] --output FILE.json

No weights and no data are needed. HDMNet: pyramid, matching and decoder, of the query and of one
support. Other methods: all that compares query and support (HSNet: correlation, squeezing, mixing,
decoder). Operations are those of the equations as written, a multiply-add counting two; time and
memory are those of the form that the configuration asks for, at ``val_size``.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from benchmark.cases import episodes
from benchmark.measure import MIB, machine, operations, peak_memory, shares
from model import build_model
from model.fewshot import FewShotModel, split_shots
from util.config import Config, add_config_arguments, load_config
from util.evaluate.result import known, settings
from util.runtime.errors import FewShotError, run, told_of
from util.runtime.files import refuse_input, user_path, write_json
from util.runtime.processor import precision

OBJECT_SHARE = 0.2
PARTS = ("pyramid", "matching", "decoder")
Methods = list[tuple[Any, str]]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.cost", description=__doc__.split("\n")[0]
    )
    add_config_arguments(parser)
    parser.add_argument("--output", type=user_path, required=True, metavar="FILE.json")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    refuse_input(args.output, args.config)
    found = cost(load_config(args.config, args.opts), torch.device(args.device))
    write_json(args.output, found)
    print(", ".join(f"{key} {value}" for key, value in found.items()))
    print(f"cost: {args.output}")


def cost(cfg: Config, device: torch.device, repeats: int = 5) -> dict[str, Any]:
    """parameters (10⁶), gflop (10⁹), ms (median), gb (10⁹ bytes beyond the loaded
    model; None where it cannot be measured)."""
    with told_of(cfg.source):
        written = build_model(cfg.replace(compute="textbook")).to(device).eval()
    if not isinstance(written, FewShotModel):
        raise FewShotError(f"{cfg.source}: arch {cfg.arch} is a base learner, no few-shot model")
    with torch.inference_mode():
        call = episode(written, cfg, device)
        with counting(methods_of(written)) as counted:
            call()
    del written, call
    torch.manual_seed(0)
    model = build_model(cfg).to(device).eval()
    model.derive()
    with torch.inference_mode(), precision(cfg.amp, device):
        call = episode(model, cfg, device)
        times = []
        for turn in range(1 + repeats):
            with shares({"all": methods_of(model)}, device) as spent:
                call()
            times += [spent["all"]] if turn else []
        memory = peak_memory(call, device)
    return {
        "parameters": sum(p.numel() for part in parts_of(model) for p in part.parameters()) / 1e6,
        "gflop": sum(counted) / 1e9,
        "ms": 1e3 * statistics.median(times),
        "gb": known(memory * MIB / 1e9),
        "size": cfg.val_size,
        "compute": cfg.compute,
        "settings": settings(cfg),
        "machine": "; ".join(f"{key} {value}" for key, value in machine(device).items()),
    }


def parts_of(model: FewShotModel) -> list[nn.Module]:
    """The parts behind the encoder whose parameters count."""
    if all(hasattr(model, name) for name in PARTS):
        return [getattr(model, name) for name in PARTS]
    frozen = {"head", *model.frozen, "encoder"}
    return [part for name, part in model.named_children() if name not in frozen]


def methods_of(model: FewShotModel) -> Methods:
    """The methods that do their work; none calls another."""
    if not all(hasattr(model, name) for name in PARTS):
        return [(model, "match")]
    steps = ("support_tokens", "attend", "merge_prior")
    return [
        *((stage, "forward") for stage in model.pyramid),
        *((block, name) for block in model.matching for name in steps),
        (model.decoder, "forward"),
    ]


def episode(model: FewShotModel, cfg: Config, device: torch.device) -> Callable[[], object]:
    """One episode of random pictures behind the encoder, as evaluation does it."""
    size = cfg.val_size
    data = episodes(size, 1, 1, torch.device("cpu"), OBJECT_SHARE)
    masks = data["support_masks"][:, 0]
    images = data["support_images"][:, 0].to(device)
    query = model.encode_query(data["query_image"].to(device))
    support = model.encode_support(images, masks if model.host_masks else masks.to(device))

    def call() -> object:
        prepared = split_shots(model.prepare_support(support), 1)
        return model.match(model.prepare_query(query), prepared, (size, size))

    return call


@contextmanager
def counting(methods: Methods) -> Iterator[list[int]]:
    """Operations of each call of the methods while the block runs."""
    counts: list[int] = []
    for owner, name in methods:
        setattr(owner, name, _counted(getattr(owner, name), counts))
    try:
        yield counts
    finally:
        for owner, name in methods:
            delattr(owner, name)


def _counted(method: Callable, counts: list[int]) -> Callable:
    def counted(*args: Any, **kwargs: Any) -> Any:
        results: list[Any] = []
        counts.append(operations(lambda: results.append(method(*args, **kwargs))))
        return results[0]

    return counted


if __name__ == "__main__":
    run(main)
