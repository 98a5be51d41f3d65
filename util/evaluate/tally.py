"""What is counted while episodes are walked, on the device; exact sums over processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.fewshot import Output
from model.layers import align, size_of
from util.config import Config
from util.data.index import FoldIndex
from util.data.transform import IGNORE, precise, restore
from util.evaluate.generalized import GeneralizedCounts, fuse
from util.evaluate.metrics import BinaryCounts, ClassCounts, ThresholdCounts
from util.evaluate.plan import Task
from util.runtime import distributed
from util.runtime.errors import FewShotError

PRIOR_MAPS = ("f5", "f4", "mean of both")
METERS = ("counts", "base", "prior", "general")


class Query(NamedTuple):
    """A query picture on the device: frozen encoding, mask to score against, its input part."""

    encoding: Any
    target: Tensor
    content: tuple[int, int]


class Tally:
    """Everything that is counted during a walk over ``runs`` x ``episodes``, on the device."""

    def __init__(
        self,
        cfg: Config,
        index: FoldIndex,
        device: torch.device,
        runs: int,
        episodes: int,
        baselines: bool,
        details: bool,
        generalized: bool = False,
    ) -> None:
        self.device, self.runs = device, runs
        self.classes, self.names = tuple(sorted(index.per_class)), index.names
        self.lut = None
        if not index.binary:  # masks of one object do not say what else is in the picture
            self.lut = torch.from_numpy(cfg.fold.lut()).to(device)
        self.label = index.label
        self.at_original_size = cfg.ori_resize
        self.baselines, self.details = baselines, details
        self.generalized, self.fusion = generalized, (cfg.merge, cfg.merge_tau)
        if generalized and self.lut is None:
            raise FewShotError(
                f"{cfg.source}: --generalized needs masks that show every class, and those of "
                f"{cfg.data_set} show one"
            )
        self.finite = torch.ones((), dtype=torch.bool, device=self.device)
        # Made by the first episode, which shows what the model puts out; None until then.
        self.counts: BinaryCounts | None = None
        self.base: ClassCounts | None = None
        self.prior: ThresholdCounts | None = None
        self.general: GeneralizedCounts | None = None
        shape = (episodes if details else 0, 2)
        self.scores = torch.zeros(shape, dtype=torch.int64, device=self.device)
        shape = (len(self.classes) if details else 0, 256)
        self.leakage = torch.zeros(shape, dtype=torch.int64, device=self.device)
        self.row = {class_id: i for i, class_id in enumerate(self.classes)}

    def _allocate(self, heads: Sequence[str], base: int, prior: int) -> BinaryCounts:
        self.counts = BinaryCounts(self.runs, self.classes, heads, self.device)
        if base:
            self.base = ClassCounts(self.runs, base, self.device)
            if self.generalized:
                self.general = GeneralizedCounts(self.runs, base, self.classes, self.device)
        if prior:
            self.prior = ThresholdCounts(self.runs, self.classes, prior, self.device)
        return self.counts

    def add(self, tasks: Sequence[Task], out: Output, query: Query, weights: Counter) -> None:
        """Count a batch of episodes about one query.

        weights: how often, in each run, the base learner's result for this query counts; it is
        the same in every episode about a query. Empty: not now.
        """
        heads = [("final", out.final)] + ([] if out.meta is None else [("meta", out.meta)])
        counts = self.counts or self._allocate(
            [name for name, _ in heads],
            0 if out.base is None or self.lut is None else out.base.shape[1],
            len(PRIOR_MAPS) if self.baselines and out.prior is not None else 0,
        )
        logits = torch.cat([value for _, value in heads], dim=1)
        self.finite &= logits.isfinite().all()
        logits = self._scored(logits, query)
        found = logits[:, 1::2] > logits[:, 0::2]
        classes = [task.episode.class_id for task in tasks]
        labels = {c: self._labels(query.target, c) for c in dict.fromkeys(classes)}
        target = torch.stack([labels[class_id] for class_id in classes])
        rows = counts.add([task.run for task in tasks], classes, found, target)
        if self.generalized and self.base is None:
            raise FewShotError("--generalized needs a base learner, which this model has not")
        if self.base is not None and (weights or self.general is not None):
            assert out.base is not None and self.lut is not None
            base = self._enlarged(out.base[:1], size_of(out.final))
            predicted, label = self._scored(base, query)[0].argmax(0), query.target.long()
            if weights:
                counted = self.base.count(predicted, self.lut[label])
                for run, times in weights.items():
                    self.base.counts[run] += counted * times
            if self.general is not None:
                self._add_general(tasks, logits[:, :2].softmax(1)[:, 1], predicted, label)
        if self.prior is not None:
            assert out.prior is not None
            maps = torch.cat([out.prior, out.prior.mean(1, keepdim=True)], dim=1)
            maps = self._scored(self._enlarged(maps, size_of(out.final)), query)
            for task, scores, label in zip(tasks, maps, target, strict=True):
                self.prior.add(task.run, task.episode.class_id, scores, label)
        if self.details:
            self._add_details(tasks, found[:, 0], query, rows[:, 0])

    def _add_general(
        self, tasks: Sequence[Task], probabilities: Tensor, base: Tensor, target: Tensor
    ) -> None:
        """Each episode's class and the base learner's labels [H, W] in one labelling."""
        assert self.general is not None and self.lut is not None
        known = self.lut[target].long()
        for task, probability in zip(tasks, probabilities, strict=True):
            class_id = task.episode.class_id
            number = self.general.number[class_id]
            labels = known.masked_fill(target == self.label(class_id), number)
            self.general.add(task.run, fuse(probability, base, number, *self.fusion), labels)

    def _labels(self, target: Tensor, class_id: int) -> Tensor:
        """uint8 [H, W] of class ids -> 1 = this class, 0 = rest, 255 = ignored."""
        labels = (target == self.label(class_id)).to(torch.uint8)
        return labels.masked_fill_(target == IGNORE, IGNORE)

    @staticmethod
    def _enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
        return align(precise(maps), size)

    def _scored(self, logits: Tensor, query: Query) -> Tensor:
        if not self.at_original_size:
            return precise(logits)
        return restore(logits, query.content, size_of(query.target))

    def _add_details(
        self, tasks: Sequence[Task], found: Tensor, query: Query, rows: Tensor
    ) -> None:
        """Each episode's intersection and union in the first run; true classes of found pixels."""
        union = rows[:, 1] + rows[:, 2] - rows[:, 0]
        true = query.target.long().flatten()
        for task, hit, total, pixels in zip(tasks, rows[:, 0], union, found, strict=True):
            if task.run == 0:
                self.scores[task.episode.index, 0] += hit
                self.scores[task.episode.index, 1] += total
            self.leakage[self.row[task.episode.class_id]].scatter_add_(
                0, true, pixels.flatten().long()
            )

    def state(self) -> dict[str, Any]:
        """All counts as plain tensors, for :meth:`load_state` of an equal tally; {} before any."""
        if self.counts is None:
            return {}
        named = {name: getattr(self, name) for name in ("scores", "leakage", "finite")}
        for name in METERS:
            if (found := getattr(self, name)) is not None:
                named[name] = found.counts
        return {"heads": list(self.counts.heads), **{k: v.cpu() for k, v in named.items()}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave, which is read before anything is changed."""
        if not state:
            return
        state = {k: v if k == "heads" else v.to(self.device) for k, v in state.items()}
        wanted = {"heads", "scores", "leakage", "finite", "counts"}
        if self.generalized and "base" in state:
            wanted.add("general")
        if missing := wanted - state.keys():
            raise KeyError(*missing)
        base = state["base"].shape[-1] if "base" in state else 0
        prior = state["prior"].shape[2] if "prior" in state else 0
        self._allocate(state["heads"], base, prior)
        for name in ("scores", "leakage", "finite"):
            setattr(self, name, state[name])
        for name in METERS:
            if (found := getattr(self, name)) is not None:
                found.counts = state[name]

    def reduce(self) -> None:
        """Add up the counts of all processes (one that had no query picture included)."""
        shape = None
        if self.counts is not None:
            base = 0 if self.base is None else self.base.counts.shape[-1]
            maps = 0 if self.prior is None else len(PRIOR_MAPS)
            shape = (self.counts.heads, base, maps)
        shapes = [found for found in distributed.gather_objects(shape) if found is not None]
        if self.counts is None:
            self._allocate(*shapes[0])
        for name in METERS:
            if (found := getattr(self, name)) is not None:
                found.reduce()
        self.scores = distributed.reduce_counts(self.scores)
        self.leakage = distributed.reduce_counts(self.leakage)
