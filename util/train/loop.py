"""The training loop, one for every stage: :func:`fit`.

A :class:`Stage` says what is trained on what, with which losses, and how it is validated. The loop
does the rest: learning rate, forward, backward, agreement of all processes, update, report,
validation, checkpoints, and leaving when asked.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from contextlib import closing

import torch

from util.config import Config, add_config_arguments, load_config
from util.data.loader import GO_ON, load_steps, make_plan
from util.data.sources import find_pairs, names_digest
from util.runtime import distributed
from util.runtime.bars import progress
from util.runtime.errors import Interrupted, NonFiniteLoss
from util.runtime.files import expanded
from util.runtime.processor import without_bf16
from util.runtime.rng import seed_everything, use_tf32
from util.runtime.signals import StopRequest
from util.runtime.workers import dead_workers
from util.train.checkpoints import CheckpointStore
from util.train.gradient import Gradient
from util.train.log import RunLog
from util.train.optim import build_optimizer, update_lr
from util.train.progress import snapshot, starting_point
from util.train.stage import Stage
from util.weights.training import is_complete, started_from


def run_stage(make: Callable[[Config, torch.device], Stage], description: str) -> None:
    """The ``main`` of a training script: command line, processes, signals, then :func:`fit`."""
    parser = argparse.ArgumentParser(description=description)
    add_config_arguments(parser)
    parser.add_argument("--resume", type=expanded, metavar="auto|FILE", help="a checkpoint")
    args = parser.parse_args()
    cfg = load_config(args.config, args.opts)
    with distributed.process_group() as device, distributed.guard(), dead_workers(GO_ON):
        with StopRequest() as stop:
            fit(make, cfg, device, args.resume, stop)


def fit(
    make: Callable[[Config, torch.device], Stage],
    cfg: Config,
    device: torch.device,
    resume: str | None,
    stop: StopRequest,
) -> None:
    """Train the stage that ``make(cfg, device)`` gives to its end.

    Everything that can be wrong shows before earlier results are touched. Raises NonFiniteLoss for
    losses and gradients (weights and checkpoints stay as they were), Interrupted when ``stop`` was
    asked (after saving), and FewShotError for files that cannot be used.
    """
    seed_everything(cfg.manual_seed)
    use_tf32(cfg.tf32)
    stage = make(cfg, device)
    model = stage.model
    optimizer = build_optimizer(model, cfg)
    scaler = torch.amp.GradScaler(device.type, enabled=cfg.amp == "fp16")
    plan = make_plan(len(stage.dataset), cfg)
    total = min(cfg.max_iterations or math.inf, cfg.epochs * plan.steps)
    epochs = math.ceil(total / plan.steps)

    # The run's folder, and where an earlier run stopped.
    store = CheckpointStore(cfg.exp_dir(), cfg.keep)
    distributed.on_main(store.lock)
    facts = {
        "data": names_digest(find_pairs(cfg, cfg.fold, "train").pairs, cfg.data_root),
        "start": started_from(cfg),
    }
    start = stage.start.seen
    at = starting_point(resume, store, model, optimizer, scaler, plan, cfg, start, facts)
    distributed.barrier()
    log = RunLog(store.folder, first_step=at.iteration)
    previous = distributed.on_main(lambda: store.begin(resumed=at.iteration > 0))
    notes = (*cfg.notes, cfg.fold.note, stage.start.note, *stage.notes)
    for note in filter(None, (*notes, without_bf16(cfg.amp, device))):
        log.say(note)
    if previous:
        log.say(f"an earlier run's checkpoints move to {previous} at the first save")
    log.say(
        f"{cfg.arch} {cfg.backbone}, {cfg.data_set} split {cfg.split}, {stage.about}; effective "
        f"batch {plan.effective_batch} = {plan.batch} x {plan.accumulate} accumulated x "
        f"{plan.processes} processes; {plan.steps} steps an epoch, {total} in all, on {device}"
    )
    if at.iteration:
        log.say(f"resumed at epoch {at.epoch + 1}, iteration {at.iteration}")
    log.run_json(cfg, effective_batch=plan.effective_batch, resumed_at=at.iteration)

    gradient = Gradient(stage, plan, scaler)
    saved_at = time.monotonic()

    def save(*names: str, complete: bool = False) -> None:
        nonlocal saved_at
        if distributed.is_main():
            state = snapshot(at, model, optimizer, scaler, plan, cfg, facts)
            store.save({**state, "complete": complete}, *names)
        saved_at = time.monotonic()

    def given_up() -> bool:
        return cfg.evaluate and 0 < cfg.stop_interval <= at.stale()

    def stopped(where: str) -> Interrupted:
        return Interrupted(
            f"stopped by {stop.name or 'a signal'} {where}; saved to {store.path('last')}, "
            "go on with --resume auto"
        )

    def end_if_asked() -> None:
        """What ends a validation at once: all that was learned is saved."""
        if stop.asked:
            raise stopped(f"in the validation of epoch {at.epoch + 1}")

    def validate(heed: Callable[[], None]) -> bool:
        """True when the model is the best so far."""
        score = stage.validate(at.epoch, log, heed)
        better = at.improve(score.value)
        log.scalars({f"val/{name}": value for name, value in score.scalars.items()}, at.iteration)
        best = " (best so far)" if better else ""
        log.say(f"epoch {at.epoch + 1} validation: {score.told}{best}")
        return better

    while at.epoch < epochs:
        if given_up():
            log.say(f"stopped: no better validation for {at.stale()} epochs")
            break
        first = at.iteration - at.epoch * plan.steps
        last = min(plan.steps, total - at.epoch * plan.steps)
        halfway = cfg.evaluate and stage.validates_halfway(at.epoch)
        model.train()
        steps = load_steps(stage.dataset, plan, cfg, at.epoch, first, last)
        bar = progress(steps, last, f"epoch {at.epoch + 1}/{epochs}", first)
        with closing(steps), bar:  # ends the worker processes, whatever happens
            for step, batches in enumerate(bar, first + 1):
                update_lr(optimizer, cfg, at.iteration + 1, total)
                losses, norm, bad_files = gradient(batches, at.iteration + 1)

                # All processes agree on what happened before the weights move.
                shared = [*losses.values(), norm, float(stop.asked)]
                *values, norm, stopping = distributed.sum_floats(shared)
                losses = dict(zip(losses, values, strict=True))
                told = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
                if not all(map(math.isfinite, [*values, norm])):
                    what = "gradient" if all(map(math.isfinite, values)) else "loss"
                    shown = [f for files in distributed.gather_objects(bad_files) for f in files]
                    message = (
                        f"the {what} at iteration {at.iteration + 1} is not finite ({told}); "
                        f"files: {', '.join(shown)}; last good checkpoint: {store.newest_path()}"
                    )
                    distributed.fail(NonFiniteLoss(message))
                scaler.step(optimizer)
                scaler.update()
                model.zero_grad(set_to_none=True)
                at.iteration += 1

                bar.set_postfix_str(told, refresh=False)
                if at.iteration % cfg.print_freq == 0 or at.iteration == total:
                    rates = {f"lr/{g['name']}": g["lr"] for g in optimizer.param_groups}
                    log.scalars({f"train/{k}": v for k, v in losses.items()} | rates, at.iteration)
                    log.say(f"epoch {at.epoch + 1} iteration {at.iteration}/{total}: {told}")
                if halfway and step == plan.steps // 2 and validate(lambda: None):
                    save("best")
                due = 0 < cfg.save_minutes <= (time.monotonic() - saved_at) / 60
                if stopping or due or (cfg.save_every and at.iteration % cfg.save_every == 0):
                    save("last")
                if stopping:
                    distributed.fail(stopped(f"at iteration {at.iteration}"))

        better = True
        if cfg.evaluate:
            save("last")  # a validation may take longer than a stop may wait
            better = validate(end_if_asked)
        finished = last == plan.steps  # max_iterations may end the run inside an epoch
        at.epoch += finished
        names = ["best"] * better
        if finished and at.epoch % cfg.save_freq == 0:
            names.append(f"epoch_{at.epoch}")
        save(*names, "last", complete=not finished or at.epoch == epochs or given_up())
        if cfg.evaluate and distributed.is_main():
            stage.show(log, at.iteration)
        if not finished:
            break

    # Killed between the files of its last save, a run finds nothing more to do.
    if distributed.is_main() and not is_complete(store.path("last")):
        save("last", complete=True)
    best = f", best validation mIoU {at.best:.4f}" if cfg.evaluate else ""
    log.say(f"done: {at.iteration} iterations{best}")
    log.close()
