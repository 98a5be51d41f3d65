"""The evaluation loop, for validation while training and for the R-run protocol alike.

The runs of a protocol ask about the same pictures again and again. All of them are therefore one
walk over the distinct query pictures: a query is encoded once for all its episodes, a (picture,
class) support once for as long as a byte budget can keep it. Pictures are read by worker processes
ahead of the model; counts stay on the device until the end; under torchrun each query picture
belongs to one process, and integer counts add up to exactly the unsharded result.

``engine="naive"`` is the reference: episode after episode through ``model(...)``.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from model import build_model
from model.fewshot import FewShotModel, Output, join_shots, map_tensors
from util import distributed, export
from util.cache import ByteCache, budgets
from util.checkpoint import load_weights, read_checkpoint, trained_shot
from util.dataset import Picture, PictureDataset
from util.episodes import Episode, EpisodeSampler
from util.errors import FewShotError
from util.folds import split_count
from util.lists import FoldIndex
from util.metrics import (
    BinaryCounts,
    ClassCounts,
    ThresholdCounts,
    fb_iou,
    mean_of_defined,
    object_iou,
    spread,
)
from util.optim import learnable_parameters
from util.pretrained import load_pretrained
from util.reader import PictureReader
from util.schema import KEYS, SECTIONS
from util.transform import IGNORE, normalise_batch, object_mask, restore

METRICS = ("miou", "fb_iou", "miou_meta", "fb_iou_meta", "miou_base")
# What a figure depends on beside data set, fold, shot and model: these keys always, of the others
# those that were changed. Left out: what is stated anyway, and what gives the same result.
STATED = ("protocol", "trained_on", "val_size", "resized_val", "ori_resize")
CHANGED = ("use_split_coco", "min_pixels", "ann_type", *(key.name for key in SECTIONS["Method"]))
UNSTATED = ("arch", "backbone", "pretrained", "base_weight", "compute", "tf32", "compile")
PRIOR_MAPS = ("f5", "f4", "mean of both")
AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
PICTURE_SHARE = 0.1  # of the host's budget, for decoded pictures; a picture is cheap to read again
FROZEN_SHARE = 0.75  # of the budget between epochs; the rest serves within one epoch
# Query pixels matched at a time: enough to fill the device, few enough to spare its memory.
PIXELS_AT_ONCE = {"cpu": 130_000, "cuda": 1_000_000}


class Task(NamedTuple):
    """An episode of a run; ``support_class`` differs from the episode's under swapped supports."""

    run: int
    episode: Episode
    support_class: int

    @property
    def keys(self) -> list[tuple[int, int]]:
        """(picture, class) of each support."""
        return [(position, self.support_class) for position in self.episode.supports]


@dataclass(frozen=True)
class Job:
    """All episodes about one query picture, equal supports next to each other."""

    query: int
    tasks: tuple[Task, ...]

    @property
    def keys(self) -> list[tuple[int, int]]:
        """Distinct supports in the order of their first use."""
        return list(dict.fromkeys(key for task in self.tasks for key in task.keys))


def plan_tasks(
    index: FoldIndex,
    classes: Sequence[int],
    shot: int,
    seeds: Sequence[int],
    episodes: int,
    swap_supports: bool = False,
) -> tuple[list[Task], EpisodeSampler]:
    """The episodes of all runs, run after run, and the sampler (for what it left out)."""
    tasks = []
    for run, seed in enumerate(seeds):
        sampler = EpisodeSampler(index, classes, shot, seed)
        for e in range(episodes):
            episode = sampler.episode(0, e)
            other = episode.class_id
            if swap_supports:
                episode, other = swapped(index, sampler, episode, seed)
            tasks.append(Task(run, episode, other))
    return tasks, sampler


def swapped(
    index: FoldIndex, sampler: EpisodeSampler, episode: Episode, seed: int
) -> tuple[Episode, int]:
    """The same question with supports of another class, one that the query does not show if any.

    Its random generator is seeded by (seed, episode, 1), independent of the episode's own.
    """
    shown = set(index.present[episode.query]) | {episode.class_id}
    pools = {
        class_id: [p for p in index.per_class[class_id] if p != episode.query]
        for class_id in sampler.classes
        if class_id != episode.class_id
    }
    pools = {class_id: pool for class_id, pool in pools.items() if len(pool) >= sampler.shot}
    if not pools:
        raise FewShotError(
            f"supports cannot be swapped: {index.names[episode.class_id]} is the only class with "
            f"{sampler.shot} support picture(s)"
        )
    choices = [class_id for class_id in pools if class_id not in shown] or list(pools)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, episode.index, 1])))
    other = choices[rng.integers(len(choices))]
    chosen = rng.choice(len(pools[other]), sampler.shot, replace=False)
    return episode._replace(supports=tuple(pools[other][i] for i in chosen)), other


def plan_jobs(tasks: Sequence[Task], rank: int = 0, ranks: int = 1) -> list[Job]:
    """This process's share of the walk: every query picture belongs to exactly one process.

    Queries that ask about the same classes follow each other, so that their supports are in use
    for a short time; shares are stretches of that walk with about equally many episodes.
    """
    groups: dict[int, list[Task]] = defaultdict(list)
    for task in tasks:
        groups[task.episode.query].append(task)
    jobs = [
        Job(query, tuple(sorted(group, key=lambda task: (task.keys, task.run, task.episode.index))))
        for query, group in groups.items()
    ]
    jobs.sort(key=lambda job: (sorted({t.support_class for t in job.tasks}), job.query))
    middles = [end - len(job.tasks) / 2 for job, end in zip(jobs, ends(jobs), strict=True)]
    return [
        job
        for job, middle in zip(jobs, middles, strict=True)
        if min(int(middle * ranks / len(tasks)), ranks - 1) == rank
    ]


def ends(jobs: Sequence[Job]) -> list[int]:
    """Number of episodes up to and with each job."""
    return list(accumulate(len(job.tasks) for job in jobs))


def weight_file(cfg: Any, weight: str | Path | None = None) -> Path:
    """The checkpoint to evaluate: the argument, ``cfg.weight``, or best.pth of the run's folder.

    Raises FewShotError when there is no such file.
    """
    path = Path(weight or cfg.weight or cfg.exp_dir() / "best.pth")
    if not path.is_file():
        raise FewShotError(
            f"there is no weight file {path}; train the model first, or name one with --weight"
        )
    return path


def load_model(
    cfg: Any, weight: str | Path, say: Callable[[str], object] | None = None
) -> FewShotModel:
    """The model of ``cfg`` in evaluation mode with every weight from the file, or, for an export
    of the learned part, from the file and ``base_weight``.

    It takes any number of supports: the K-shot reweighting network is built for the number that
    it was trained with, and any other number counts alike. ``say`` is told when that is so for
    ``cfg.shot``. Raises FewShotError when the file does not fit or ``cfg`` is about a base learner.
    """
    content = read_checkpoint(weight)
    exported = content.get("format") == export.FORMAT
    shot = trained_shot(content["learned"] if exported else weight) or cfg.shot
    try:
        model = build_model(cfg.replace(shot=shot))
    except ValueError as error:
        raise FewShotError(f"{cfg.source}: {error}") from error
    if not isinstance(model, FewShotModel):
        raise FewShotError(f"{cfg.source}: arch {cfg.arch} is a base learner, no few-shot model")
    if exported:
        load_pretrained(model, cfg)
        export.load_learned(model, weight)
    else:
        load_weights(model, weight, complete=True)
    if say is not None and shot != cfg.shot:
        say(
            f"note: {weight} was trained with {shot} support(s) an episode; the {cfg.shot} here "
            "count alike in the ensemble"
        )
    return model.eval()


class _Query(NamedTuple):
    """A query picture on the device: frozen encoding, mask to score against, its input part."""

    encoding: Any
    target: Tensor
    content: tuple[int, int]


class Tally:
    """Everything that is counted during a walk, on the device."""

    def __init__(
        self, evaluator: Evaluator, runs: int, episodes: int, baselines: bool, details: bool
    ) -> None:
        self.device = evaluator.device
        self.runs, self.classes, self.lut = runs, evaluator.classes, evaluator.lut
        self.label = evaluator.index.label
        self.at_original_size = evaluator.cfg.ori_resize
        self.baselines, self.details = baselines, details
        self.finite = torch.ones((), dtype=torch.bool, device=self.device)
        # Made by the first episode, which shows what the model puts out; None until then.
        self.counts: BinaryCounts | None = None
        self.base: ClassCounts | None = None
        self.prior: ThresholdCounts | None = None
        self.base_channels = 0
        shape = (episodes if details else 0, 2)
        self.scores = torch.zeros(shape, dtype=torch.int64, device=self.device)
        shape = (len(self.classes) if details else 0, 256)
        self.leakage = torch.zeros(shape, dtype=torch.int64, device=self.device)
        self.row = {class_id: i for i, class_id in enumerate(self.classes)}

    def _allocate(self, heads: Sequence[str], base: int, prior: int) -> None:
        self.counts = BinaryCounts(self.runs, self.classes, heads, self.device)
        if base:
            self.base = ClassCounts(self.runs, base, self.device)
        if prior:
            self.prior = ThresholdCounts(self.runs, self.classes, prior, self.device)

    def add(self, tasks: Sequence[Task], out: Output, query: _Query, weights: Counter) -> None:
        """Count a batch of episodes about one query.

        weights: how often, in each run, the base learner's result for this query counts; it is
        the same in every episode about a query. Empty: not now.
        """
        heads = [("final", out.final)] + ([] if out.meta is None else [("meta", out.meta)])
        if self.counts is None:
            with_base = out.base is not None and self.lut is not None
            self._allocate(
                [name for name, _ in heads],
                out.base.shape[1] if with_base else 0,
                len(PRIOR_MAPS) if self.baselines and out.prior is not None else 0,
            )
        logits = torch.cat([value for _, value in heads], dim=1)
        self.finite &= logits.isfinite().all()
        logits = self._scored(logits, query)
        found = logits[:, 1::2] > logits[:, 0::2]
        classes = [task.episode.class_id for task in tasks]
        labels = {c: self._labels(query.target, c) for c in dict.fromkeys(classes)}
        target = torch.stack([labels[class_id] for class_id in classes])
        rows = self.counts.add([task.run for task in tasks], classes, found, target)
        if self.base is not None and weights:
            predicted = self._scored(out.base[:1], query)[0].argmax(0)
            counted = self.base.count(predicted, self.lut[query.target.long()])
            for run, times in weights.items():
                self.base.counts[run] += counted * times
        if self.prior is not None:
            maps = torch.cat([out.prior, out.prior.mean(1, keepdim=True)], dim=1)
            maps = self._scored(self._enlarged(maps, tuple(out.final.shape[-2:])), query)
            for task, scores, label in zip(tasks, maps, target, strict=True):
                self.prior.add(task.run, task.episode.class_id, scores, label)
        if self.details:
            self._add_details(tasks, found[:, 0], query, rows[:, 0])

    def _labels(self, target: Tensor, class_id: int) -> Tensor:
        """uint8 [H, W] of class ids -> 1 = this class, 0 = rest, 255 = ignored."""
        labels = (target == self.label(class_id)).to(torch.uint8)
        return labels.masked_fill_(target == IGNORE, IGNORE)

    @staticmethod
    def _enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(maps.float(), size, mode="bilinear", align_corners=True)

    def _scored(self, logits: Tensor, query: _Query) -> Tensor:
        if not self.at_original_size:
            return logits if logits.dtype == torch.float64 else logits.float()
        return restore(logits, query.content, tuple(query.target.shape))

    def _add_details(
        self, tasks: Sequence[Task], found: Tensor, query: _Query, rows: Tensor
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
        for counts in (self.counts, self.base, self.prior):
            if counts is not None:
                counts.reduce()
        self.scores = distributed.reduce_counts(self.scores)
        self.leakage = distributed.reduce_counts(self.leakage)


class Evaluator:
    """Evaluates few-shot models on the held-out classes of one fold.

    index: the fold's evaluation index, whose classes the episodes are about. With ``keep_frozen``
    what depends on the frozen encoder alone is kept from one :meth:`run` to the next, under the
    same byte budget (``cache_gb``): for validation while training. The encoder's weights must not
    change then (or call :meth:`forget`).
    """

    def __init__(
        self,
        cfg: Any,
        index: FoldIndex,
        device: torch.device | str = "cpu",
        keep_frozen: bool = False,
    ) -> None:
        self.cfg, self.index, self.device = cfg, index, torch.device(device)
        self.classes = tuple(sorted(index.per_class))
        # Raises when no class can form an episode: before training, not after its first epoch.
        EpisodeSampler(index, self.classes, cfg.shot, seed=0)
        self.dataset = PictureDataset(cfg, index)
        self.lut = None
        if not index.binary:  # masks of one object do not say what else is in the picture
            self.lut = torch.from_numpy(cfg.fold.lut()).to(self.device)
        self.keep_frozen = keep_frozen
        room = budgets(self.device, cfg.cache_gb)
        self.picture_room = int(room[-1][1] * PICTURE_SHARE)
        room[-1] = (room[-1][0], room[-1][1] - self.picture_room)
        kept = FROZEN_SHARE if keep_frozen else 0.0
        self.frozen = ByteCache([(place, int(size * kept)) for place, size in room])
        self.prepared_room = [(place, size - int(size * kept)) for place, size in room]
        self.content: dict[int, tuple[int, int]] = {}
        self.warned = False

    def forget(self) -> None:
        """Drop what is kept between runs: the encoder has changed."""
        self.frozen.clear()

    def run(
        self,
        model: FewShotModel,
        seeds: Sequence[int],
        episodes: int,
        *,
        engine: str = "walk",
        baselines: bool = False,
        swap_supports: bool = False,
        details: bool = False,
        progress: bool = True,
    ) -> Result:
        """``episodes`` episodes a run, one run for each of ``seeds``; the model is left as it was.

        engine: 'walk', or 'naive' for the reference loop. baselines: also count a prediction that
        calls everything object, and the prior mask at its best threshold. swap_supports: give
        supports of another class. details: keep the IoU of each episode of the first run and what
        the predicted pixels really are. Under torchrun every process must call this.

        Raises FewShotError for unreadable pictures, classes that cannot form any episode, and a
        model that puts out numbers that are not finite.
        """
        if engine not in ("walk", "naive"):
            raise ValueError(f"engine is 'walk' or 'naive', not {engine!r}")
        cfg, begin = self.cfg, time.perf_counter()
        try:
            model.check_size(cfg.val_size, cfg.val_size)
        except ValueError as error:
            raise FewShotError(f"val_size: {error}") from error
        tasks, sampler = plan_tasks(
            self.index, self.classes, cfg.shot, seeds, episodes, swap_supports
        )
        if sampler.dropped and not self.warned and distributed.is_main():
            tqdm.write(f"warning: {sampler.dropped_message()}")
            self.warned = True
        jobs = plan_jobs(tasks, distributed.rank(), distributed.world_size())
        tally = Tally(self, len(seeds), episodes, baselines, details)
        walk = _Walk(self, model, jobs, tally) if engine == "walk" else None
        walk = walk or _Naive(self, model, jobs, tally)

        training = model.training
        model.eval()
        failure = None
        try:
            with torch.inference_mode(), self._precision():
                total = sum(len(job.tasks) for job in jobs)
                bar = tqdm(
                    total=total,
                    desc="evaluate",
                    unit="ep",
                    disable=not (progress and distributed.is_main()),
                    leave=False,
                )
                with bar:
                    walk.go(bar)
        except FewShotError as error:
            failure = error
        finally:
            walk.close()
            model.train(training)
        self._agree(failure)
        with distributed.guard():
            tally.reduce()
            finite = all(distributed.gather_objects(bool(tally.finite)))
            queries, supports, reads = (
                sum(column) for column in zip(*distributed.gather_objects(walk.work), strict=True)
            )
        if not finite:
            raise FewShotError(
                "the model's output is not finite; the weights are damaged, or amp: fp16 overflows"
            )
        seconds = time.perf_counter() - begin
        timing = {
            "seconds": seconds,
            "episodes_per_second": len(tasks) / seconds,
            "encoder_passes": queries + supports,
            "query_encodings": queries,
            "support_encodings": supports,
            "pictures_read": reads,
            "processes": distributed.world_size(),
            "engine": engine,
        }
        first = [task.episode for task in tasks if task.run == 0] if details else []
        result = make_result(self, tuple(seeds), episodes, tally, timing, first)
        return replace(result, parameters=learnable_parameters(model, cfg))

    def _precision(self) -> torch.autocast:
        dtype = AMP[self.cfg.amp]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def _agree(self, failure: FewShotError | None) -> None:
        """All processes go on, or all stop; nobody waits for one that failed."""
        with distributed.guard():
            messages = distributed.gather_objects(None if failure is None else str(failure))
        if failure is not None:
            raise failure
        message = next((m for m in messages if m is not None), None)
        if message is not None:
            raise FewShotError(message)

    # -- pieces shared by both engines ------------------------------------------------------

    def on_device(self, picture: Picture) -> Tensor:
        """The picture as network input [1, 3, H, W], normalised."""
        return normalise_batch(picture.image.to(self.device, non_blocking=True))[None]

    def support_mask(self, picture: Picture, class_id: int, model: FewShotModel) -> Tensor:
        """uint8 [1, H, W]: 1 object, 0 rest, 255 ignore; where ``model`` wants it."""
        label = self.index.label(class_id)
        mask = torch.from_numpy(object_mask(picture.mask.numpy(), label, self.cfg.ann_type))[None]
        if self.device.type == "cuda":
            mask = mask.pin_memory()
        return mask if model.host_masks else mask.to(self.device, non_blocking=True)

    def target(self, picture: Picture) -> Tensor:
        """Class ids to score against, at the original or the input size."""
        mask = picture.target if self.cfg.ori_resize else picture.mask
        return mask.to(self.device, non_blocking=True)


class _Walk:
    """Query by query, with encodings kept while they have uses left."""

    def __init__(
        self, evaluator: Evaluator, model: FewShotModel, jobs: Sequence[Job], tally: Tally
    ) -> None:
        self.evaluator, self.model, self.jobs, self.tally = evaluator, model, jobs, tally
        self.frozen = evaluator.frozen
        self.prepared = ByteCache(evaluator.prepared_room)
        self.at_hand: dict[tuple[int, int], Any] = {}
        self.uses = Counter(key for job in jobs for task in job.tasks for key in task.keys)
        self.roles: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for key in self.uses:
            self.roles[key[0]].append(key)
        self.waiting = {job.query for job in jobs}
        self.queries = self.supports = 0
        self.reader = PictureReader(
            evaluator.dataset,
            self._needed,
            evaluator.cfg.workers,
            evaluator.picture_room,
            pin=evaluator.device.type == "cuda",
        )

    @property
    def work(self) -> tuple[int, int, int]:
        """Query encodings, support encodings, pictures read."""
        return self.queries, self.supports, self.reader.reads

    def close(self) -> None:
        self.reader.stop()

    def _have(self, key: tuple[int, int]) -> bool:
        return key in self.prepared or ("support", key) in self.frozen

    def _needed(self, position: int) -> bool:
        """Will this picture be looked at (again)?"""
        as_query = position in self.waiting and ("query", position) not in self.frozen
        return as_query or any(self.uses[k] and not self._have(k) for k in self.roles[position])

    def _demand(self) -> Iterator[int]:
        """Positions in the order in which the walk will look at them; consulted a little ahead."""
        for job in self.jobs:
            if ("query", job.query) not in self.frozen and not self.reader.expects(job.query):
                yield job.query
            for key in job.keys:
                if not self._have(key) and not self.reader.expects(key[0]):
                    yield key[0]

    def go(self, bar: tqdm) -> None:
        self.reader.start(self._demand())
        step = episodes_at_once(self.evaluator.cfg, self.evaluator.device)
        size = (self.evaluator.cfg.val_size,) * 2
        for job in self.jobs:
            query = self._query(job.query)
            prepared = self.model.prepare_query(query.encoding)
            weights = Counter(task.run for task in job.tasks)
            for start in range(0, len(job.tasks), step):
                batch = job.tasks[start : start + step]
                keys = [task.keys for task in batch]
                distinct = dict.fromkeys(key for row in keys for key in row)
                self.at_hand = {key: self._support(key) for key in distinct}
                supports = join_shots([[self.at_hand[key] for key in row] for row in keys])
                with_base = bool(weights) and self.tally.lut is not None
                out = self.model.match(
                    repeated(prepared, len(batch)), supports, size, with_base=with_base
                )
                self.tally.add(batch, out, query, weights)
                weights = Counter()
                self._used(key for row in keys for key in row)
                bar.update(len(batch))
            self.waiting.discard(job.query)
            for position in {job.query, *(key[0] for key in job.keys)}:
                if not self._needed(position):
                    self.reader.drop(position)
        self.at_hand = {}

    def _query(self, position: int) -> _Query:
        device = self.evaluator.device
        kept = self.frozen.get(("query", position), device)
        if kept is None:
            picture = self.reader.get(position)
            encoding = self.model.encode_query(self.evaluator.on_device(picture))
            kept = (encoding, self.evaluator.target(picture))
            self.queries += 1
            self.evaluator.content[position] = tuple(map(int, picture.content))
            self.frozen.put(("query", position), kept)
        return _Query(*kept, self.evaluator.content[position])

    def _support(self, key: tuple[int, int]) -> Any:
        """The prepared support of (picture, class), batch 1."""
        device = self.evaluator.device
        if key in self.at_hand:
            return self.at_hand[key]
        if key in self.prepared:
            return self.prepared.get(key, device)
        encoding = self.frozen.get(("support", key), device)
        if encoding is None:
            position, class_id = key
            picture = self.reader.get(position)
            encoding = self.model.encode_support(
                self.evaluator.on_device(picture),
                self.evaluator.support_mask(picture, class_id, self.model),
            )
            self.supports += 1
            self.frozen.put(("support", key), encoding)
        prepared = self.model.prepare_support(encoding)
        if self.uses[key] > 1:
            self.prepared.put(key, prepared)
        return prepared

    def _used(self, keys: Iterator[tuple[int, int]]) -> None:
        for key in keys:
            self.uses[key] -= 1
            if not self.uses[key]:
                self.prepared.drop(key)


class _Naive:
    """The reference: read the pictures of an episode, call the model, count, forget."""

    def __init__(
        self, evaluator: Evaluator, model: FewShotModel, jobs: Sequence[Job], tally: Tally
    ) -> None:
        self.evaluator, self.model, self.tally = evaluator, model, tally
        tasks = [task for job in jobs for task in job.tasks]
        self.tasks = sorted(tasks, key=lambda task: (task.run, task.episode.index))
        self.queries = self.supports = 0
        self.reader = PictureReader(
            evaluator.dataset, lambda position: False, evaluator.cfg.workers, 0
        )

    @property
    def work(self) -> tuple[int, int, int]:
        return self.queries, self.supports, self.reader.reads

    def close(self) -> None:
        self.reader.stop()

    def go(self, bar: tqdm) -> None:
        self.reader.start(p for t in self.tasks for p in (t.episode.query, *t.episode.supports))
        evaluator = self.evaluator
        for task in self.tasks:
            picture = self.reader.get(task.episode.query)
            supports = [self.reader.get(position) for position in task.episode.supports]
            images = torch.stack([evaluator.on_device(s) for s in supports], dim=1)
            masks = [evaluator.support_mask(s, task.support_class, self.model) for s in supports]
            out = self.model(evaluator.on_device(picture), images, torch.stack(masks, dim=1))
            content = tuple(map(int, picture.content))
            query = _Query(None, evaluator.target(picture), content)
            self.tally.add([task], out, query, Counter([task.run]))
            self.queries += 1
            self.supports += len(supports)
            bar.update(1)


def episodes_at_once(cfg: Any, device: torch.device) -> int:
    """How many episodes about one query are matched together.

    ``batch_size_val``, or chosen by size and number of supports; one in textbook form, which is
    there to count exactly as the naive loop does: in a batch a product's last digits may differ.
    """
    if cfg.batch_size_val is not None:
        return cfg.batch_size_val
    if cfg.compute == "textbook":
        return 1
    return max(1, PIXELS_AT_ONCE.get(device.type, 0) // (cfg.val_size**2 * cfg.shot))


def repeated(encoding: Any, times: int) -> Any:
    """An encoding of batch 1 as a batch of ``times`` equal ones, without copies."""
    if times == 1:
        return encoding
    return map_tensors(encoding, lambda t: t.expand(times, *t.shape[1:]))


@dataclass(frozen=True)
class Result:
    """What an evaluation found. IoU values are fractions in [0, 1]; None where undefined.

    runs: one dictionary a seed, as in test.py's JSON; mean, std, ci95: over the runs, ``ci95`` is
    the half width of the 95 % interval of the mean (Student's t), None with a single run.
    class_iou: head ('final', 'meta') -> class name -> IoU, mean over the runs that had it.
    scored: with ``details``, (IoU, episode) of the first run; leakage: class name -> true class
    name -> predicted pixels; parameters: how many the model learns.
    """

    episodes: int
    runs: list[dict[str, Any]]
    mean: dict[str, float | None]
    std: dict[str, float | None]
    ci95: dict[str, float | None]
    class_iou: dict[str, dict[str, float | None]]
    timing: dict[str, Any]
    baselines: dict[str, Any] | None = None
    scored: list[tuple[float, Episode]] = field(default_factory=list)
    leakage: dict[str, dict[str, int]] = field(default_factory=dict)
    counts: Tally | None = None
    parameters: int | None = None

    def to_json(self, cfg: Any, weight: str | Path | None) -> dict[str, Any]:
        """The content of ``test.py --output``."""
        content = {
            "dataset": cfg.data_set,
            "arch": cfg.arch,
            "backbone": cfg.backbone,
            "split": cfg.split,
            "shot": cfg.shot,
            "weight": None if weight is None else str(weight),
            "episodes": self.episodes,
            "runs": self.runs,
            "mean": self.mean,
            "std": self.std,
            "ci95": self.ci95,
            "timing": self.timing,
            "parameters": self.parameters,
            "folds": split_count(cfg),
            "settings": settings(cfg),
        }
        if cfg.fold.source != "table":  # a split that nobody else may have: the result says so
            content["classes_from"] = cfg.fold.source
        if self.baselines is not None:
            content["baselines"] = self.baselines
        return content

    def table(self) -> str:
        """One line a run, then mean ± half interval; per cent."""
        used = [name for name in METRICS if self.mean[name] is not None]
        rows = [["run", "seed", *used]]
        for number, run in enumerate(self.runs, 1):
            rows.append([str(number), str(run["seed"]), *(percent(run[name]) for name in used)])
        rows.append(["mean", "", *(percent(self.mean[name]) for name in used)])
        if len(self.runs) > 1:
            rows.append(["std", "", *(percent(self.std[name]) for name in used)])
            rows.append(["± 95 %", "", *(percent(self.ci95[name]) for name in used)])
        return grid(rows)

    def class_table(self) -> str:
        """IoU of each class, mean over the runs that had episodes of it; per cent."""
        rows = [["class", *(f"IoU {head}" for head in self.class_iou)]]
        for name in self.class_iou["final"]:
            rows.append([name, *(percent(values[name]) for values in self.class_iou.values())])
        return grid(rows)

    def comparison(self) -> str:
        """The model beside the baselines on the same episodes; per cent."""
        rows = [["prediction", "mIoU", "FB-IoU"]]
        rows.append(["final", percent(self.mean["miou"]), percent(self.mean["fb_iou"])])
        if self.mean["miou_meta"] is not None:
            both = percent(self.mean["miou_meta"]), percent(self.mean["fb_iou_meta"])
            rows.append(["meta (no base learner)", *both])
        for name, found in (self.baselines or {}).items():
            if found is not None:
                rows.append(
                    [name.replace("_", " "), percent(found["miou"]), percent(found["fb_iou"])]
                )
        return grid(rows)


def settings(cfg: Any) -> dict[str, Any]:
    """The options without which results must not be compared, as ``result.json`` states them."""
    stated = {name: getattr(cfg, name) for name in STATED}
    for name in CHANGED:
        value, default = getattr(cfg, name), KEYS[name].default
        default = list(default) if isinstance(default, tuple) else default
        if name not in UNSTATED and value != default:
            stated[name] = value
    return stated


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def grid(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as aligned columns, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def known(value: float) -> float | None:
    """None for NaN, which JSON cannot hold."""
    return None if math.isnan(value) else value


def make_result(
    evaluator: Evaluator,
    seeds: tuple[int, ...],
    episodes: int,
    tally: Tally,
    timing: dict[str, Any],
    first: Sequence[Episode],
) -> Result:
    """Read the counts back (the walk's one synchronisation) and turn them into fractions."""
    names = evaluator.cfg.fold.names
    columns: dict[str, list[float]] = {
        "miou": tally.counts.miou("final"),
        "fb_iou": tally.counts.fb_iou("final"),
    }
    if "meta" in tally.counts.heads:
        columns["miou_meta"] = tally.counts.miou("meta")
        columns["fb_iou_meta"] = tally.counts.fb_iou("meta")
    if tally.base is not None:
        columns["miou_base"] = tally.base.miou()
    per_class = tally.counts.class_iou("final").tolist()
    runs = []
    for number, seed in enumerate(seeds):
        run: dict[str, Any] = {"seed": seed}
        for name in METRICS:
            run[name] = known(columns[name][number]) if name in columns else None
        run["class_iou"] = {
            names[class_id]: known(value)
            for class_id, value in zip(tally.classes, per_class[number], strict=True)
        }
        runs.append(run)
    summary = {}
    for name in METRICS:
        values = [run[name] for run in runs if run[name] is not None]
        summary[name] = spread(values) if values else (None, None, None)
    mean_, std, ci95 = ({name: summary[name][i] for name in METRICS} for i in range(3))
    scored = [
        (hit / union if union else math.nan, episode)
        for (hit, union), episode in zip(tally.scores.tolist(), first, strict=True)
    ]
    class_iou = {}
    for head in tally.counts.heads:
        means = [known(mean_of_defined(column)) for column in tally.counts.class_iou(head).T]
        ids = [names[class_id] for class_id in tally.classes]
        class_iou[head] = dict(zip(ids, means, strict=True))
    return Result(
        episodes=episodes,
        runs=runs,
        mean=mean_,
        std=std,
        ci95=ci95,
        class_iou=class_iou,
        timing=timing,
        baselines=_baselines(tally) if tally.baselines else None,
        scored=scored,
        leakage=_leakage(tally, names) if tally.details else {},
        counts=tally,
    )


def _baselines(tally: Tally) -> dict[str, Any]:
    everything = tally.counts.everything_found()
    found: dict[str, Any] = {"all_foreground": _summary(everything), "prior": None}
    if tally.prior is not None:
        which, threshold, counts = tally.prior.best()
        found["prior"] = {**_summary(counts), "map": PRIOR_MAPS[which], "threshold": threshold}
    return found


def _summary(counts: Tensor) -> dict[str, Any]:
    """mIoU and FB-IoU, means over the runs, of counts [runs, classes, 4]."""
    miou = [mean_of_defined(row) for row in object_iou(counts)]
    return {"miou": known(sum(miou) / len(miou)), "fb_iou": known(float(np.mean(fb_iou(counts))))}


def _leakage(tally: Tally, names: dict[int, str]) -> dict[str, dict[str, int]]:
    labels = {0: "background", **({1: "object"} if tally.lut is None else names)}
    return {
        names[class_id]: {labels[i]: n for i, n in enumerate(row) if n and i != IGNORE}
        for class_id, row in zip(tally.classes, tally.leakage.tolist(), strict=True)
    }
