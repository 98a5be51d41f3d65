"""The evaluation loop, for validation while training and for the R-run protocol alike.

The runs of a protocol ask about the same pictures again and again. All of them are therefore one
walk over the distinct query pictures: a query is encoded once for all its episodes, a (picture,
class) support once for as long as a byte budget can keep it. Pictures are read by worker processes
ahead of the model; counts stay on the device until the end; under torchrun each query picture
belongs to one process, and integer counts add up to exactly the unsharded result.

``engine="naive"`` is the reference: episode after episode through ``model(...)``.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from model.fewshot import FewShotModel, join_shots, map_tensors
from util import distributed
from util.cache import ByteCache, budgets
from util.dataset import Picture, PictureDataset
from util.episodes import EpisodeSampler
from util.errors import FewShotError
from util.evaluate.plan import (
    Job,
    classes_not_asked,
    not_asked_message,
    plan_jobs,
    plan_tasks,
)
from util.evaluate.result import Result, make_result
from util.evaluate.tally import Query, Tally
from util.lists import FoldIndex
from util.optim import learnable_parameters
from util.reader import PictureReader
from util.transform import normalise_batch, object_mask

AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
PICTURE_SHARE = 0.1  # of the host's budget, for decoded pictures; a picture is cheap to read again
FROZEN_SHARE = 0.75  # of the budget between epochs; the rest serves within one epoch
# Query pixels matched at a time: enough to fill the device, few enough to spare its memory.
PIXELS_AT_ONCE = {"cpu": 130_000, "cuda": 1_000_000}


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
        self.keep_frozen = keep_frozen
        room = budgets(self.device, cfg.cache_gb)
        self.picture_room = int(room[-1][1] * PICTURE_SHARE)
        room[-1] = (room[-1][0], room[-1][1] - self.picture_room)
        kept = FROZEN_SHARE if keep_frozen else 0.0
        self.frozen = ByteCache([(place, int(size * kept)) for place, size in room])
        self.prepared_room = [(place, size - int(size * kept)) for place, size in room]
        self.content: dict[int, tuple[int, int]] = {}
        self.said: set[str] = set()

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
        say: Callable[[str], object] = tqdm.write,
    ) -> Result:
        """``episodes`` episodes a run, one run for each of ``seeds``; the model is left as it was.

        engine: 'walk', or 'naive' for the reference loop. baselines: also count a prediction that
        calls everything object, and the prior mask at its best threshold. swap_supports: give
        supports of another class. details: keep the IoU of each episode of the first run and what
        the predicted pixels really are. say: is told, once each, which classes are left out or not
        asked about. Under torchrun every process must call this.

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
        missing = classes_not_asked(tasks, sampler.classes)
        asked = not_asked_message(self.index, sampler.classes, missing, len(seeds), episodes)
        for message in (sampler.dropped_message(), asked):
            if message and message not in self.said and distributed.is_main():
                say(f"warning: {message}")
                self.said.add(message)
        jobs = plan_jobs(tasks, distributed.rank(), distributed.world_size())
        tally = Tally(cfg, self.index, self.device, len(seeds), episodes, baselines, details)
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
        result = make_result(tuple(seeds), episodes, tally, timing, first)
        return replace(
            result,
            parameters=learnable_parameters(model, cfg),
            not_asked=[self.index.names[c] for c in missing],
            left_out=list(sampler.dropped),
        )

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

    def _query(self, position: int) -> Query:
        device = self.evaluator.device
        kept = self.frozen.get(("query", position), device)
        if kept is None:
            picture = self.reader.get(position)
            encoding = self.model.encode_query(self.evaluator.on_device(picture))
            kept = (encoding, self.evaluator.target(picture))
            self.queries += 1
            self.evaluator.content[position] = tuple(map(int, picture.content))
            self.frozen.put(("query", position), kept)
        return Query(*kept, self.evaluator.content[position])

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
            query = Query(None, evaluator.target(picture), content)
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
