"""Two ways through the episodes of a plan: the walk over query pictures, and its reference."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from tqdm import tqdm

from model.fewshot import FewShotModel, join_shots, map_tensors
from util.config import Config
from util.evaluate.cache import ByteCache
from util.evaluate.plan import Job, remaining
from util.evaluate.reader import PictureReader
from util.evaluate.setting import Setting
from util.evaluate.tally import Query, Tally

# Query pixels matched at a time: enough to fill the device, few enough to spare its memory.
PIXELS_AT_ONCE = {"cpu": 130_000, "cuda": 1_000_000}


class Way:
    """A way through the episodes of ``jobs``, of which the first ``done`` are counted already."""

    reader: PictureReader

    def __init__(
        self,
        setting: Setting,
        model: FewShotModel,
        jobs: Sequence[Job],
        tally: Tally,
        done: int = 0,
    ) -> None:
        self.setting, self.model, self.tally, self.done = setting, model, tally, done
        self.queries = self.supports = 0
        self.begin(jobs)

    def begin(self, jobs: Sequence[Job]) -> None:
        """Prepare for what is left of ``jobs``; make the reader."""
        raise TypeError(f"{type(self).__name__} must define begin")

    @property
    def work(self) -> tuple[int, int, int]:
        """Query encodings, support encodings, pictures read."""
        return self.queries, self.supports, self.reader.reads

    def close(self) -> None:
        """End the processes that read pictures."""
        self.reader.stop()

    def go(self, bar: tqdm, after: Callable[[], None]) -> None:
        """Count every episode; ``after`` is called after each batch of them."""
        raise TypeError(f"{type(self).__name__} must define go")


class Walk(Way):
    """Query by query, with encodings kept while they have uses left."""

    def begin(self, jobs: Sequence[Job]) -> None:
        setting = self.setting
        self.jobs = jobs = remaining(jobs, self.done)
        self.frozen = setting.frozen
        self.prepared = ByteCache(setting.prepared_room)
        self.at_hand: dict[tuple[int, int], Any] = {}
        self.uses = Counter(key for job in jobs for task in job.tasks for key in task.keys)
        self.roles: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for key in self.uses:
            self.roles[key[0]].append(key)
        self.waiting = {job.query for job in jobs}
        self.reader = PictureReader(
            setting.dataset,
            self._needed,
            setting.cfg.workers,
            setting.picture_room,
            pin=setting.device.type == "cuda",
        )

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

    def go(self, bar: tqdm, after: Callable[[], None]) -> None:
        self.reader.start(self._demand())
        step = episodes_at_once(self.setting.cfg, self.setting.device)
        size = (self.setting.cfg.val_size,) * 2
        for job in self.jobs:
            query = self._query(job.query)
            prepared = self.model.prepare_query(query.encoding)
            weights = Counter() if job.begun else Counter(task.run for task in job.tasks)
            for start in range(0, len(job.tasks), step):
                batch = job.tasks[start : start + step]
                keys = [task.keys for task in batch]
                distinct = dict.fromkeys(key for row in keys for key in row)
                self.at_hand = {key: self._support(key) for key in distinct}
                supports = join_shots([[self.at_hand[key] for key in row] for row in keys])
                out = self.model.match(repeated(prepared, len(batch)), supports, size)
                self.tally.add(batch, out, query, weights)
                weights = Counter()
                self._used(key for row in keys for key in row)
                self.done += len(batch)
                bar.update(len(batch))
                after()
            self.waiting.discard(job.query)
            for position in {job.query, *(key[0] for key in job.keys)}:
                if not self._needed(position):
                    self.reader.drop(position)
        self.at_hand = {}

    def _query(self, position: int) -> Query:
        device = self.setting.device
        kept = self.frozen.get(("query", position), device)
        if kept is None:
            picture = self.reader.get(position)
            encoding = self.model.encode_query(self.setting.on_device(picture))
            kept = (encoding, self.setting.target(picture))
            self.queries += 1
            self.setting.content[position] = picture.content
            self.frozen.put(("query", position), kept)
        encoding, target = kept
        return Query(encoding, target, self.setting.content[position])

    def _support(self, key: tuple[int, int]) -> Any:
        """The prepared support of (picture, class), batch 1."""
        device = self.setting.device
        if key in self.at_hand:
            return self.at_hand[key]
        if key in self.prepared:
            return self.prepared.get(key, device)
        encoding = self.frozen.get(("support", key), device)
        if encoding is None:
            position, class_id = key
            picture = self.reader.get(position)
            encoding = self.model.encode_support(
                self.setting.on_device(picture),
                self.setting.support_mask(picture, class_id, self.model),
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


class Naive(Way):
    """The reference: read the pictures of an episode, call the model, count, forget."""

    def begin(self, jobs: Sequence[Job]) -> None:
        tasks = [task for job in jobs for task in job.tasks]
        self.tasks = sorted(tasks, key=lambda task: (task.run, task.episode.index))[self.done :]
        self.reader = PictureReader(
            self.setting.dataset, lambda position: False, self.setting.cfg.workers, 0
        )

    def go(self, bar: tqdm, after: Callable[[], None]) -> None:
        self.reader.start(p for t in self.tasks for p in (t.episode.query, *t.episode.supports))
        setting = self.setting
        for task in self.tasks:
            picture = self.reader.get(task.episode.query)
            supports = [self.reader.get(position) for position in task.episode.supports]
            images = torch.stack([setting.on_device(s) for s in supports], dim=1)
            masks = [setting.support_mask(s, task.support_class, self.model) for s in supports]
            out = self.model(setting.on_device(picture), images, torch.stack(masks, dim=1))
            query = Query(None, setting.target(picture), picture.content)
            self.tally.add([task], out, query, Counter([task.run]))
            self.queries += 1
            self.supports += len(supports)
            self.done += 1
            bar.update(1)
            after()


def episodes_at_once(cfg: Config, device: torch.device) -> int:
    """How many episodes about one query are matched together.

    ``batch_size_val``, or chosen by size and number of supports; one in textbook form, the
    reference: a batch adds up in another order.
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
