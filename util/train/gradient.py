"""The gradient of one step's joint loss, however its batch is split."""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from util.data.loader import StepPlan
from util.runtime.processor import precision
from util.runtime.rng import DropoutStream, per_sample_dropout
from util.train.objective import joint_objective, joint_values, pixel_shares
from util.train.stage import Stage


class Gradient:
    """The gradient of the joint loss of all micro-batches of all processes, for one step."""

    def __init__(self, stage: Stage, plan: StepPlan, scaler: torch.amp.GradScaler) -> None:
        cfg, self.device, self.target = stage.cfg, stage.device, stage.target
        self.plan, self.scaler, self.seed, self.amp = plan, scaler, cfg.manual_seed, cfg.amp
        eager = cfg.compile == "off"
        self.dropout = per_sample_dropout(stage.model) if eager else DropoutStream()
        self.losses: nn.Module = stage
        if stage.device.type == "cuda" and plan.processes > 1 and cfg.sync_bn and not cfg.fix_bn:
            stage.model = nn.SyncBatchNorm.convert_sync_batchnorm(stage.model)
        if not eager:
            self.losses = torch.compile(self.losses, mode=cfg.compile)
        if plan.processes > 1:
            self.losses = DistributedDataParallel(self.losses, broadcast_buffers=not cfg.fix_bn)

    def __call__(
        self, batches: list[dict], iteration: int
    ) -> tuple[dict[str, float], float, list[str]]:
        """Add it to the parameters' ``grad``.

        Returns this process's contribution to each loss; the norm of the gradient (0 in fp16,
        whose scaler leaves out the steps that overflow); and files: of its micro-batches whose loss
        is not finite, of all where that is so of the gradient alone.
        """
        plan, device = self.plan, self.device
        total: dict[str, float] = {}
        bad_files: list[str] = []
        all_files: list[str] = []
        shares = pixel_shares([batch[self.target] for batch in batches])
        for micro, (batch, share) in enumerate(zip(batches, shares, strict=True)):
            files = [file for item in batch.pop("files") for file in item]
            batch = {k: v.to(device, non_blocking=True) for k, v in batch.items()}
            self.dropout.start(device, self.seed, iteration, plan.places(micro))
            more = micro + 1 < plan.accumulate
            with self.losses.no_sync() if more and plan.processes > 1 else nullcontext():
                with precision(self.amp, device):
                    terms = self.losses(batch)
                self.scaler.scale(joint_objective(terms, share, plan.accumulate)).backward()
            values = joint_values(terms, share, plan.accumulate)
            for name, value in values.items():
                total[name] = total.get(name, 0.0) + value
            all_files += files
            if not all(map(math.isfinite, values.values())):
                bad_files += files
        norm = 0.0 if self.scaler.is_enabled() else self._norm()
        return total, norm, bad_files or ([] if math.isfinite(norm) else all_files)

    def _norm(self) -> float:
        """Of the gradient of all parameters, which stays as it is."""
        return float(nn.utils.clip_grad_norm_(self.losses.parameters(), math.inf))
