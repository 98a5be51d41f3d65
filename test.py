"""Evaluation: N episodes x R runs on the held-out classes of a fold.

    python test.py --config config/pascal/pascal_split0_resnet50.yaml
    torchrun --nproc_per_node 4 test.py --config ... --weight best.pth --output result.json

Prints a line a run, mean, deviation and 95 % interval, and writes ``result.json`` (to the run's
folder, or to ``--output``), with the resolved configuration and the versions beside it in
``result_run.json``. Until then ``result.json.partial`` keeps what was counted: stopped or killed,
the same command goes on from there. Exit status: 2 for a mistake, 75 after SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from torch import nn

from model.fewshot import FewShotModel
from util.config import Config, add_config_arguments
from util.data.index import FoldIndex, build_index
from util.data.sources import names_digest
from util.draw.charts import class_iou_chart, leakage_chart, run_spread_chart
from util.evaluate import Evaluator, Partial, Result
from util.predict.figures import episode_figures
from util.runtime import distributed
from util.runtime.errors import FewShotError, run
from util.runtime.files import LAST, expanded, refuse_input, user_path, write_json
from util.runtime.processor import without_bf16
from util.runtime.record import versions, write_run_record
from util.runtime.rng import use_tf32
from util.runtime.signals import StopRequest
from util.runtime.workers import dead_workers
from util.weights.checkpoint import read_checkpoint
from util.weights.identity import origin_of
from util.weights.load import load_model, model_of
from util.weights.training import training_of, weights_of


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_config_arguments(parser, required=False)
    parser.add_argument(
        "--weight", type=expanded, metavar="FILE", help="default: the run's best.pth"
    )
    parser.add_argument("--episodes", type=int, metavar="N", help="episodes of a run")
    parser.add_argument("--runs", type=int, metavar="R", help="runs, one seed each")
    parser.add_argument(
        "--output", type=user_path, metavar="FILE.json", help="where the result goes"
    )
    parser.add_argument(
        "--figures", type=int, default=0, metavar="N", help="draw the N best, median, worst"
    )
    parser.add_argument(
        "--baselines",
        action="store_true",
        help="also score an all-object prediction and the prior mask at its best threshold",
    )
    parser.add_argument(
        "--generalized",
        action="store_true",
        help="also score base classes and the novel one in one labelling (merge, merge_tau)",
    )
    parser.add_argument(
        "--swap-supports",
        action="store_true",
        help="give supports of another class, to see how much the supports matter",
    )
    parser.add_argument(
        "--naive", action="store_true", help="episode by episode, nothing kept: the reference"
    )
    return parser.parse_args()


def main() -> None:
    args = arguments()
    settings = [("episodes", args.episodes), ("runs", args.runs), ("weight", args.weight)]
    overrides = [item for pair in settings if pair[1] is not None for item in pair]
    cfg, weight = model_of(args.config, args.weight, [*args.opts, *overrides])
    if args.figures < 0:
        raise FewShotError(f"--figures must be 0 or more, not {args.figures}")
    if args.figures and args.swap_supports:
        raise FewShotError("--figures draws episodes as they are: leave out --swap-supports")
    name = "result_swapped.json" if args.swap_supports else "result.json"
    output = args.output or cfg.exp_dir() / name
    refuse_input(output, args.config, weight)
    with distributed.process_group() as device, dead_workers(), StopRequest() as stop:
        evaluate(args, cfg, weight, output, device, stop)


def evaluate(
    args: argparse.Namespace,
    cfg: Config,
    weight: Path,
    output: Path,
    device: torch.device,
    stop: StopRequest,
) -> None:
    use_tf32(cfg.tf32)

    # The model, its weights, and a place for the result: what can be wrong shows now.
    say, stands = None, {}
    content = read_checkpoint(weight)  # once: a training may put other weights there meanwhile
    if distributed.is_main():
        say = print
        stands = {"weights": weights_of(content), "training": training_of(weight.with_name(LAST))}
    model = load_model(cfg, weight, say, content=content).to(device)
    origin = origin_of(content, str(weight))
    del content
    if cfg.compile != "off":
        compile_learned(model, cfg.compile)
    distributed.on_main(lambda: check_writable(output))
    index = distributed.on_main(lambda: build_index(cfg, "test"))

    for note in filter(None, (cfg.fold.note, without_bf16(cfg.amp, device))):
        if distributed.is_main():
            print(f"note: {note}")
    evaluator = Evaluator(cfg, index, device)
    partial = Partial(output, stop, versions())
    result = evaluator.run(
        model,
        cfg.seeds[: cfg.runs],
        cfg.episodes,
        engine="naive" if args.naive else "walk",
        baselines=args.baselines,
        swap_supports=args.swap_supports,
        details=args.figures > 0,
        generalized=args.generalized,
        partial=partial,
    )

    if distributed.is_main():
        content = result.to_json(cfg, weight, origin.summary() if origin else None)
        content |= {"data": names_digest(index.pairs, cfg.data_root), **stands}
        if args.swap_supports:
            content["swapped_supports"] = True
        write_json(output, content)
        record = output.with_name(f"{output.stem}_run.json")
        write_run_record(record, cfg.to_dict(), weight=str(weight))
        partial.remove()
        print(report(result))
        print(f"result: {output}")
        if args.figures:
            for path in draw(model, cfg, index, result, output.parent / "figures", args.figures):
                print(f"figure: {path}")


def compile_learned(model: FewShotModel, mode: str) -> None:
    """Compile the learned modules in place; names in the state dict stay as they are.

    The frozen encoder stays out: its weights are folded already, and it runs once a picture. No
    CUDA graphs: they reuse the memory of results that the evaluation keeps.
    """
    mode = f"{mode}-no-cudagraphs" if mode == "max-autotune" else mode
    for name, child in model.named_children():
        if name not in model.frozen:
            for module in child if isinstance(child, nn.ModuleList) else [child]:
                module.compile(mode=mode)


def check_writable(path: Path) -> None:
    """Raise FewShotError when the result could not be written hours from now."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FewShotError(f"cannot write {path}: {error.strerror or error}") from error
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise FewShotError(f"cannot write {path}: it is a folder, or its folder is read-only")


def report(result: Result) -> str:
    """What the screen shows: runs, classes, and the baselines when they were asked for."""
    parts = [result.class_table(), result.table()]
    if result.baselines is not None:
        parts.append(result.comparison())
    timing = result.timing
    parts.append(
        f"{timing['episodes_per_second']:.1f} episodes/s, {timing['seconds']:.0f} s, "
        f"{timing['encoder_passes']} encoder passes, {timing['processes']} process(es)"
    )
    return "\n\n".join(parts)


def draw(
    model: FewShotModel, cfg: Config, index: FoldIndex, result: Result, folder: Path, count: int
) -> list[Path]:
    """Panels of the best, median and worst episodes of the first run, and the charts."""
    paths = episode_figures(model, cfg, index, result.scored, folder, count)
    title = f"{cfg.arch} {cfg.data_set} split {cfg.split}, {cfg.shot} shot"
    classes = {
        head: {name: value for name, value in values.items() if value is not None}
        for head, values in result.class_iou.items()
    }
    paths.append(class_iou_chart(folder / "class_iou.png", classes, title))
    series = {f"{result.episodes:,} episodes": [run["miou"] for run in result.runs]}
    paths.append(run_spread_chart(folder / "runs.png", series, title))
    if any(result.leakage.values()):
        leakage = {name: row for name, row in result.leakage.items() if row}
        paths.append(leakage_chart(folder / "leakage.png", leakage, title))
    return paths


if __name__ == "__main__":
    run(main)
