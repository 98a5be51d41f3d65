"""The gradient of one step's joint loss, however its batch is split."""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from util.data.loader import StepPlan
from util.runtime.rng import DropoutStream, per_sample_dropout
from util.train.objective import joint_objective, joint_values, pixel_shares
from util.train.stage import Stage


class Gradient:
    """The gradient of the joint loss of all micro-batches of all processes, for one step."""

    def __init__(self, stage: Stage, plan: StepPlan, scaler: torch.amp.GradScaler) -> None:
        cfg, self.device, self.target = stage.cfg, stage.device, stage.target
        self.plan, self.scaler, self.seed = plan, scaler, cfg.manual_seed
        self.half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(cfg.amp)
        eager = cfg.compile == "off"
        self.dropout = per_sample_dropout(stage.model) if eager else DropoutStream()
        self.losses: nn.Module = stage
        if stage.device.type == "cuda" and plan.processes > 1 and cfg.sync_bn and not cfg.fix_bn:
            stage.model = nn.SyncBatchNorm.convert_sync_batchnorm(stage.model)
        if not eager:
            self.losses = torch.compile(self.losses, mode=cfg.compile)
        if plan.processes > 1:
            self.losses = DistributedDataParallel(self.losses, broadcast_buffers=not cfg.fix_bn)

    def __call__(self, batches: list[dict], iteration: int) -> tuple[dict[str, float], list[str]]:
        """Add it to the parameters' ``grad``; this process's contribution to each loss, and the
        files of its micro-batches whose loss is not finite."""
        plan, device = self.plan, self.device
        total: dict[str, float] = {}
        bad_files: list[str] = []
        shares = pixel_shares([batch[self.target] for batch in batches])
        for micro, (batch, share) in enumerate(zip(batches, shares, strict=True)):
            files = batch.pop("files")
            batch = {k: v.to(device, non_blocking=True) for k, v in batch.items()}
            self.dropout.start(device, self.seed, iteration, plan.places(micro))
            more = micro + 1 < plan.accumulate
            with self.losses.no_sync() if more and plan.processes > 1 else nullcontext():
                with torch.autocast(device.type, self.half, enabled=self.half is not None):
                    terms = self.losses(batch)
                self.scaler.scale(joint_objective(terms, share, plan.accumulate)).backward()
            values = joint_values(terms, share, plan.accumulate)
            for name, value in values.items():
                total[name] = total.get(name, 0.0) + value
            if not all(map(math.isfinite, values.values())):
                bad_files += [file for item in files for file in item]
        return total, bad_files
