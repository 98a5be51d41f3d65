"""Stage 2: episodic training of a few-shot model (HDMNet, HSNet).

    python train.py --config config/pascal/pascal_split0_resnet50.yaml
    torchrun --nproc_per_node 4 train.py --config ... --opts shot 5 --resume auto

Writes ``last.pth``, ``best.pth``, ``epoch_N.pth``, ``train.log``, ``run.json`` and TensorBoard
events to ``exp/<data set>/<arch>/split<i>/<backbone>/<shot>shot``. Exit status: 2 for a user's
mistake, 3 when the loss is not finite, 75 after SIGTERM or SIGINT (state saved).
"""

from __future__ import annotations

import argparse
import math
import time
from contextlib import closing, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model import build_model
from model.fewshot import FewShotModel
from util import distributed
from util.config import Config, add_config_arguments, load_config
from util.dataset import EpisodeDataset
from util.episodes import EpisodeSampler
from util.errors import FewShotError, Interrupted, NonFiniteLoss, run
from util.evaluate import Evaluator
from util.lists import FoldIndex, build_index
from util.loader import GO_ON, load_steps, make_plan
from util.logger import RunLog, progress
from util.objective import joint_objective, joint_values, pixel_shares
from util.optim import build_optimizer, update_lr
from util.pretrained import load_pretrained
from util.progress import Progress, restore, snapshot
from util.rng import DropoutStream, per_sample_dropout, seed_everything
from util.runtime.files import expanded
from util.runtime.workers import dead_workers
from util.signals import StopRequest
from util.store import CheckpointStore, read_state
from util.visualize import episode_panel

PICTURES = 4  # validation episodes shown in TensorBoard
HALF_EPOCH_LIMIT = 100  # SubEpoch_val is for runs of at most so many epochs, as published


class EpisodeStep(nn.Module):
    """Forward pass and losses in one module, which is what DDP and torch.compile must see."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        out = self.model(
            batch["query_image"],
            batch["support_images"],
            batch["support_masks"],
            batch["class_index"],
        )
        return self.model.losses(out, batch["query_mask"], batch["base_mask"])


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
        if not isinstance(model, FewShotModel):
            raise FewShotError(f"{cfg.source}: arch {cfg.arch} is trained with train_base.py")
        model.check_size(cfg.train_h, cfg.train_w)
        model.check_size(cfg.val_size, cfg.val_size)
    except ValueError as error:
        raise FewShotError(f"{cfg.source}: {error}") from error
    load_pretrained(model, cfg)
    model.to(device)
    optimizer = build_optimizer(model, cfg)
    scaler = torch.amp.GradScaler(device.type, enabled=cfg.amp == "fp16")
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(cfg.amp)

    # Data. Everything that can be wrong with it shows before anything is written.
    train_index, val_index = distributed.on_main(
        lambda: (build_index(cfg, "train"), build_index(cfg, "val") if cfg.evaluate else None)
    )
    dataset = EpisodeDataset(cfg, train_index, shot=getattr(model, "train_shot", cfg.shot))
    plan = make_plan(len(dataset), cfg)
    total = min(cfg.max_iterations or math.inf, cfg.epochs * plan.steps)
    epochs = math.ceil(total / plan.steps)
    try:
        evaluator = Evaluator(cfg, val_index, device, keep_frozen=True) if cfg.evaluate else None
    except FewShotError as error:
        raise FewShotError(f"{error}; evaluate: False trains without validation") from error

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
    step_model = EpisodeStep(model)
    if cfg.compile != "off":
        step_model = torch.compile(step_model, mode=cfg.compile)
    if plan.processes > 1:
        step_model = DistributedDataParallel(step_model, broadcast_buffers=not cfg.fix_bn)

    for note in (*cfg.notes, dataset.sampler.dropped_message()):
        if note:
            log.say(note)
    if previous:
        log.say(f"an earlier run's checkpoints move to {previous} at the first save")
    learnable = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    log.say(
        f"{cfg.arch} {cfg.backbone}, {cfg.data_set} split {cfg.split}, {cfg.shot} shot: "
        f"{learnable:,} learnable parameters, {len(dataset):,} episodes an epoch; effective batch "
        f"{plan.effective_batch} = {plan.batch} x {plan.accumulate} accumulated x "
        f"{plan.processes} processes; {plan.steps} steps an epoch, {total} in all, on {device}"
    )
    if at.iteration:
        log.say(f"resumed at epoch {at.epoch + 1}, iteration {at.iteration}")
    log.run_json(cfg, effective_batch=plan.effective_batch, resumed_at=at.iteration)

    def checkpoint(*names: str) -> None:
        if distributed.is_main():
            store.save(snapshot(at, model, optimizer, scaler, plan, cfg), *names)

    def validate() -> bool:
        """Score the model; True when it is the best so far."""
        seed = cfg.manual_seed + (0 if cfg.fix_random_seed_val else at.epoch)
        result = evaluator.run(model, seeds=[seed], episodes=cfg.episodes, say=log.say)
        scores = {k: result.mean.get(k) for k in VALIDATED}
        log.scalars({f"val/{name}": value for name, value in scores.items()}, at.iteration)
        better = at.improve(math.nan if scores["miou"] is None else scores["miou"])
        told = ", ".join(f"{k} {v:.4f}" for k, v in scores.items() if v is not None)
        log.say(f"epoch {at.epoch + 1} validation: {told}{' (best so far)' if better else ''}")
        return better

    saved_at = time.monotonic()
    while at.epoch < epochs:
        if cfg.evaluate and 0 < cfg.stop_interval <= at.stale():
            log.say(f"stopped: no better validation for {at.stale()} epochs")
            break
        first = at.iteration - at.epoch * plan.steps
        last = min(plan.steps, total - at.epoch * plan.steps)
        middle = plan.steps // 2 if halfway_validation(cfg, at.epoch) else None
        model.train()
        steps = load_steps(dataset, plan, cfg, at.epoch, first, last)
        bar = progress(steps, last, f"epoch {at.epoch + 1}/{epochs}", first)
        with closing(steps), bar:  # ends the worker processes, whatever happens
            for step, batches in enumerate(bar, first + 1):
                iteration = at.iteration + 1
                update_lr(optimizer, cfg, iteration, total)

                # Gradient of the joint loss of all micro-batches of all processes.
                losses: dict[str, float] = {}
                bad_files: list[str] = []
                shares = pixel_shares([batch["query_mask"] for batch in batches])
                for micro, (batch, share) in enumerate(zip(batches, shares, strict=True)):
                    files = batch.pop("files")
                    batch = {k: v.to(device, non_blocking=True) for k, v in batch.items()}
                    dropout.start(device, cfg.manual_seed, iteration, plan.places(micro))
                    more = micro + 1 < plan.accumulate
                    with step_model.no_sync() if more and plan.processes > 1 else nullcontext():
                        with torch.autocast(device.type, half, enabled=half is not None):
                            terms = step_model(batch)
                        scaler.scale(joint_objective(terms, share, plan.accumulate)).backward()
                    for name, value in joint_values(terms, share, plan.accumulate).items():
                        losses[name] = losses.get(name, 0.0) + value
                        if not math.isfinite(value):
                            bad_files += [file for episode in files for file in episode]

                # All processes agree on what happened before the weights move.
                *values, stopping = distributed.sum_floats([*losses.values(), float(stop.asked)])
                losses = dict(zip(losses, values, strict=True))
                if not all(map(math.isfinite, values)):
                    shown = [f for files in distributed.gather_objects(bad_files) for f in files]
                    distributed.fail(
                        NonFiniteLoss(
                            f"the loss at iteration {iteration} is not finite "
                            f"({', '.join(f'{k} {v:g}' for k, v in losses.items())}); files: "
                            f"{', '.join(shown)}; last good checkpoint: {store.newest_path()}"
                        )
                    )
                scaler.step(optimizer)
                scaler.update()
                model.zero_grad(set_to_none=True)
                at.iteration = iteration

                bar.set_postfix({k: f"{v:.3f}" for k, v in losses.items()}, refresh=False)
                if iteration % cfg.print_freq == 0 or iteration == total:
                    rates = {g["name"]: g["lr"] for g in optimizer.param_groups}
                    log.scalars({f"train/{k}": v for k, v in losses.items()}, iteration)
                    log.scalars({f"lr/{k}": v for k, v in rates.items()}, iteration)
                    told = ", ".join(f"{k} {v:.4f}" for k, v in losses.items())
                    log.say(f"epoch {at.epoch + 1} iteration {iteration}/{total}: {told}")
                if step == middle and validate():
                    checkpoint("best")
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

        better = validate() if cfg.evaluate else True
        finished = last == plan.steps  # max_iterations may end the run inside an epoch
        at.epoch += finished
        names = ["best"] * better
        if finished and at.epoch % cfg.save_freq == 0:
            names.append(f"epoch_{at.epoch}")
        checkpoint(*names, "last")
        saved_at = time.monotonic()
        if cfg.evaluate and distributed.is_main():
            show_episodes(log, model, cfg, val_index, at.iteration)
        if not finished:
            break

    best = f", best validation mIoU {at.best:.4f}" if cfg.evaluate else ""
    log.say(f"done: {at.iteration} iterations{best}")
    log.close()


VALIDATED = ("miou", "fb_iou", "miou_meta", "fb_iou_meta", "miou_base")


def halfway_validation(cfg: Config, epoch: int) -> bool:
    """``SubEpoch_val`` as published: in runs of at most 100 epochs, from the second epoch on, also
    in the middle of the epoch."""
    return cfg.evaluate and cfg.SubEpoch_val and epoch > 0 and cfg.epochs <= HALF_EPOCH_LIMIT


def show_episodes(
    log: RunLog, model: nn.Module, cfg: Config, index: FoldIndex, iteration: int
) -> None:
    """The same few validation episodes every time: supports, truth, prediction, correlations."""
    fold = cfg.fold
    sampler = EpisodeSampler(index, fold.classes("val"), cfg.shot, cfg.manual_seed)
    for number in range(min(PICTURES, len(sampler))):
        episode = sampler.episode(0, number)
        name = fold.names[episode.class_id]
        panel = episode_panel(model, cfg, index, episode, name)
        log.picture(f"validation/{number + 1} {name}", panel, iteration)


if __name__ == "__main__":
    run(main)
