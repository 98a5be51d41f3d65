"""Stage 1: the base learner (PSPNet) learns the base classes of a fold.

    python train_base.py --config config/pascal/pascal_split0_resnet50_base.yaml
    torchrun --nproc_per_node 4 train_base.py --config ... --resume auto

Writes ``last.pth``, ``best.pth`` (which stage 2 starts from), ``epoch_N.pth``, ``train.log``,
``run.json`` and TensorBoard events to ``exp/<data set>/PSPNet/split<i>/<backbone>``. Exit status:
2 for a user's mistake, 3 when the loss is not finite, 75 after SIGTERM or SIGINT (state saved).
"""

from __future__ import annotations

import argparse
import math
import time
from contextlib import closing, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Subset

from model import PSPNet, build_model
from util import distributed, transform
from util.config import Config, add_config_arguments, load_config
from util.dataset import PictureDataset, SegmentationDataset
from util.errors import FewShotError, Interrupted, NonFiniteLoss, run
from util.lists import FoldIndex, build_index
from util.loader import GO_ON, load_steps, make_plan, whole
from util.logger import RunLog, progress
from util.metrics import ClassCounts
from util.objective import joint_objective, joint_values, pixel_shares
from util.optim import build_optimizer, update_lr
from util.pretrained import load_pretrained
from util.progress import Progress, restore, snapshot
from util.rng import DropoutStream, per_sample_dropout, seed_everything
from util.runtime.files import expanded
from util.runtime.workers import dead_workers, read_ahead
from util.signals import StopRequest
from util.store import CheckpointStore, read_state


class SegmentationStep(nn.Module):
    """Forward pass and losses in one module, which is what DDP and torch.compile must see."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.model.losses(self.model(batch["image"]), batch["mask"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_config_arguments(parser)
    parser.add_argument(
        "--resume", type=expanded, metavar="auto|FILE", help="go on from a checkpoint"
    )
    args = parser.parse_args()
    cfg = load_config(args.config, args.opts)
    with distributed.process_group() as device, distributed.guard(), dead_workers(GO_ON):
        with StopRequest() as stop:
            train(cfg, args.resume, device, stop)


def train(cfg: Config, resume: str | None, device: torch.device, stop: StopRequest) -> None:
    # Model, optimiser.
    seed_everything(cfg.manual_seed)
    torch.set_float32_matmul_precision("high" if cfg.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = cfg.tf32
    try:
        model = build_model(cfg)
    except ValueError as error:
        raise FewShotError(f"{cfg.source}: {error}") from error
    if not isinstance(model, PSPNet):
        raise FewShotError(
            f"{cfg.source}: arch {cfg.arch} is not a base learner; train_base.py takes the "
            "*_base.yaml files, train.py the others"
        )
    load_pretrained(model, cfg)
    model.to(device, memory_format=torch.channels_last)  # the quicker layout for convolutions
    optimizer = build_optimizer(model, cfg)
    scaler = torch.amp.GradScaler(device.type, enabled=cfg.amp == "fp16")
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(cfg.amp)

    # Data. Everything that can be wrong with it shows before anything is written.
    train_index, val_index = distributed.on_main(
        lambda: (build_index(cfg, "train"), build_index(cfg, "base") if cfg.evaluate else None)
    )
    dataset = SegmentationDataset(cfg, train_index)
    plan = make_plan(len(dataset), cfg)
    total = min(cfg.max_iterations or math.inf, cfg.epochs * plan.steps)
    epochs = math.ceil(total / plan.steps)

    # The run's folder, and where an earlier run stopped.
    store = CheckpointStore(cfg.exp_dir(), cfg.keep)
    distributed.on_main(store.lock)
    state = None
    if resume:
        state = store.latest() if resume == "auto" else read_state(resume)
    at = restore(state, model, optimizer, scaler, plan, cfg) if state else Progress()
    distributed.barrier()
    log = RunLog(store.folder, first_step=at.iteration)
    previous = store.begin(resumed=state is not None) if distributed.is_main() else None
    del state

    # What the loop calls: forward + losses, on one process or many.
    dropout = per_sample_dropout(model) if cfg.compile == "off" else DropoutStream()
    if device.type == "cuda" and plan.processes > 1 and cfg.sync_bn and not cfg.fix_bn:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    step_model = SegmentationStep(model)
    if cfg.compile != "off":
        step_model = torch.compile(step_model, mode=cfg.compile)
    if plan.processes > 1:
        step_model = DistributedDataParallel(step_model, broadcast_buffers=not cfg.fix_bn)

    for note in cfg.notes:
        log.say(note)
    if previous:
        log.say(f"an earlier run's checkpoints move to {previous} at the first save")
    log.say(
        f"{cfg.arch} {cfg.backbone}, {cfg.data_set} split {cfg.split}: {cfg.num_base} base "
        f"classes, {len(dataset):,} pictures an epoch; effective batch {plan.effective_batch} = "
        f"{plan.batch} x {plan.accumulate} accumulated x {plan.processes} processes; "
        f"{plan.steps} steps an epoch, {total} in all, on {device}"
    )
    if at.iteration:
        log.say(f"resumed at epoch {at.epoch + 1}, iteration {at.iteration}")
    log.run_json(cfg, effective_batch=plan.effective_batch, resumed_at=at.iteration)

    def checkpoint(*names: str) -> None:
        if distributed.is_main():
            store.save(snapshot(at, model, optimizer, scaler, plan, cfg), *names)

    saved_at = time.monotonic()
    while at.epoch < epochs:
        if cfg.evaluate and 0 < cfg.stop_interval <= at.stale():
            log.say(f"stopped: no better validation for {at.stale()} epochs")
            break
        first = at.iteration - at.epoch * plan.steps
        last = min(plan.steps, total - at.epoch * plan.steps)
        model.train()
        steps = load_steps(dataset, plan, cfg, at.epoch, first, last)
        bar = progress(steps, last, f"epoch {at.epoch + 1}/{epochs}", first)
        with closing(steps), bar:  # ends the worker processes, whatever happens
            for batches in bar:
                iteration = at.iteration + 1
                update_lr(optimizer, cfg, iteration, total)

                # Gradient of the joint loss of all micro-batches of all processes.
                loss = 0.0
                bad_files: list[str] = []
                shares = pixel_shares([batch["mask"] for batch in batches])
                for micro, (batch, share) in enumerate(zip(batches, shares, strict=True)):
                    files = batch.pop("files")
                    batch = {k: v.to(device, non_blocking=True) for k, v in batch.items()}
                    dropout.start(device, cfg.manual_seed, iteration, plan.places(micro))
                    more = micro + 1 < plan.accumulate
                    with step_model.no_sync() if more and plan.processes > 1 else nullcontext():
                        with torch.autocast(device.type, half, enabled=half is not None):
                            terms = step_model(batch)
                        scaler.scale(joint_objective(terms, share, plan.accumulate)).backward()
                    value = joint_values(terms, share, plan.accumulate)["main"]
                    loss += value
                    if not math.isfinite(value):
                        bad_files += [file for item in files for file in item]

                # All processes agree on what happened before the weights move.
                loss, stopping = distributed.sum_floats([loss, float(stop.asked)])
                if not math.isfinite(loss):
                    shown = [f for files in distributed.gather_objects(bad_files) for f in files]
                    distributed.fail(
                        NonFiniteLoss(
                            f"the loss at iteration {iteration} is not finite ({loss:g}); files: "
                            f"{', '.join(shown)}; last good checkpoint: {store.newest_path()}"
                        )
                    )
                scaler.step(optimizer)
                scaler.update()
                model.zero_grad(set_to_none=True)
                at.iteration = iteration

                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                if iteration % cfg.print_freq == 0 or iteration == total:
                    rates = {f"lr/{g['name']}": g["lr"] for g in optimizer.param_groups}
                    log.scalars({"train/main": loss, **rates}, iteration)
                    log.say(f"epoch {at.epoch + 1} iteration {iteration}/{total}: loss {loss:.4f}")
                minutes = (time.monotonic() - saved_at) / 60
                if (
                    stopping
                    or (cfg.save_every and iteration % cfg.save_every == 0)
                    or 0 < cfg.save_minutes <= minutes
                ):
                    checkpoint("last")
                    saved_at = time.monotonic()
                if stopping:
                    distributed.fail(
                        Interrupted(
                            f"stopped by {stop.name or 'a signal'} at iteration {iteration}; "
                            f"saved to {store.path('last')}, go on with --resume auto"
                        )
                    )

        better = True
        if cfg.evaluate:
            counts = validate(model, cfg, val_index, device)
            miou, with_ground = counts.miou()[0], counts.miou(background=True)[0]
            better = at.improve(miou)
            log.scalars({"val/miou_base": miou, "val/miou_with_background": with_ground},
                        at.iteration)  # fmt: skip
            log.say(
                f"epoch {at.epoch + 1} validation: mIoU {miou:.4f} over base classes, "
                f"{with_ground:.4f} with background{' (best so far)' if better else ''}"
            )
        finished = last == plan.steps  # max_iterations may end the run inside an epoch
        at.epoch += finished
        names = ["best"] * better
        if finished and at.epoch % cfg.save_freq == 0:
            names.append(f"epoch_{at.epoch}")
        checkpoint(*names, "last")
        saved_at = time.monotonic()
        if not finished:
            break

    best = f", best validation mIoU {at.best:.4f}" if cfg.evaluate else ""
    log.say(f"done: {at.iteration} iterations{best}")
    log.close()


@torch.inference_mode()
def validate(model: nn.Module, cfg: Config, index: FoldIndex, device: torch.device) -> ClassCounts:
    """Pixel counts of the base classes over the validation pictures that show one, at the
    pictures' own size; shared among processes, each picture once."""
    mine = sorted(set(index.entries))[distributed.rank() :: distributed.world_size()]
    pictures = read_ahead(
        Subset(PictureDataset(cfg, index), mine), min(cfg.workers, len(mine)), batch_size=None
    )
    lut = None if index.binary else torch.from_numpy(cfg.fold.lut()).to(device)
    counts = ClassCounts(1, cfg.num_base + 1, device)
    model.eval()
    for picture in progress(whole(pictures), len(mine), "validation"):
        logits = model(transform.normalise_batch(picture.image.to(device)[None]))
        logits = transform.restore(logits, picture.content, tuple(picture.target.shape))
        target = picture.target.to(device).long()
        if lut is not None:
            target = lut[target]
        else:  # binary masks show the one class of their folder
            number = cfg.fold.base_index(index.present[picture.position][0]) + 1
            target = target.masked_fill(target == 1, number)
        counts.add(0, logits[0].argmax(0), target)
    counts.reduce()
    return counts


if __name__ == "__main__":
    run(main)
