"""The evaluation loop, for validation while training and for the R-run protocol alike.

The runs of a protocol ask about the same pictures again and again. All of them are therefore one
walk over the distinct query pictures: a query is encoded once for all its episodes, a (picture,
class) support once for as long as a byte budget can keep it. Pictures are read by worker processes
ahead of the model; counts stay on the device until the end; under torchrun each query picture
belongs to one process with all its batches, the same computation as in one process with as many
threads, and integer counts add up to exactly the unsharded result.

``engine="naive"`` is the reference: episode after episode through ``model(...)``. It encodes K
supports at once, the walk one by one: the same sums in another order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from tqdm import tqdm

from model.fewshot import FewShotModel
from util.evaluate.partial import Partial, files_state
from util.evaluate.plan import (
    Job,
    classes_not_asked,
    not_asked_message,
    plan_jobs,
    plan_tasks,
)
from util.evaluate.result import Result, learnable_parameters, make_result
from util.evaluate.setting import Setting
from util.evaluate.tally import Tally
from util.evaluate.walk import Naive, Walk, episodes_at_once
from util.runtime import distributed
from util.runtime.errors import FewShotError, Interrupted, told_of
from util.runtime.processor import precision
from util.weights.fingerprint import fingerprint

SAME_COUNTS = ("workers", "cache_gb", "exp_root", "weight")  # options that counts don't depend on


class Evaluator(Setting):
    """Evaluates few-shot models on the held-out classes of one fold."""

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
        generalized: bool = False,
        progress: bool = True,
        say: Callable[[str], object] = tqdm.write,
        partial: Partial | None = None,
        heed: Callable[[], None] = lambda: None,
    ) -> Result:
        """``episodes`` episodes a run, one run for each of ``seeds``; the model is left as it was.

        engine: 'walk', or 'naive' for the reference loop. baselines: also count a prediction that
        calls everything object, and the prior mask at its best threshold. swap_supports: give
        supports of another class. details: keep the IoU of each episode of the first run and what
        the predicted pixels really are. generalized: also score base classes and the novel one in
        one labelling (``merge``, ``merge_tau``). say: is told, once each, which classes are left
        out or not asked about. partial: keeps the counts while they grow, and those of an earlier
        call that was stopped. heed: called after every batch of episodes where there is no
        ``partial``; may raise Interrupted. Under torchrun every process must call this.

        Raises FewShotError for unreadable pictures, classes that cannot form any episode, and a
        model that puts out numbers that are not finite; Interrupted when ``partial`` or ``heed``
        says so.
        """
        if engine not in ("walk", "naive"):
            raise ValueError(f"engine is 'walk' or 'naive', not {engine!r}")
        cfg, begin = self.cfg, time.perf_counter()
        with told_of("val_size"):
            model.check_size(cfg.val_size, cfg.val_size)
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
        tally = Tally(
            cfg, self.index, self.device, len(seeds), episodes, baselines, details, generalized
        )
        done = 0
        if partial is not None:
            options = {"engine": engine, "baselines": baselines, "details": details}
            options["generalized"] = generalized
            done = partial.begin(self._facts(model, jobs, options), tally)
            counted = sum(distributed.gather_objects(done))
            if counted and distributed.is_main():
                say(f"note: {counted:,} of {len(tasks):,} episodes: taken from {partial.path}")
        walk = (Walk if engine == "walk" else Naive)(self, model, jobs, tally, done)

        training = model.training
        model.eval()
        model.derive()
        failure = None
        try:
            with torch.inference_mode(), precision(self.cfg.amp, self.device):
                total = sum(len(job.tasks) for job in jobs)
                bar = tqdm(
                    total=total,
                    initial=done,
                    desc="evaluate",
                    unit="ep",
                    disable=not (progress and distributed.is_main()),
                    leave=False,
                )
                with bar:
                    walk.go(bar, heed if partial is None else lambda: partial.after(walk))
        except FewShotError as error:
            failure = error
        finally:
            walk.close()
            model.train(training)
        if partial is not None and not isinstance(failure, Interrupted):
            partial.save(walk)
        distributed.agree(failure)
        earlier = (0, 0, 0) if partial is None else partial.work
        with distributed.guard():
            tally.reduce()
            finite = all(distributed.gather_objects(bool(tally.finite)))
            work = distributed.gather_objects((walk.work, earlier))
            queries, supports, reads = (
                sum(column) for column in zip(*(w for both in work for w in both), strict=True)
            )
        if not finite:
            if partial is not None:
                partial.remove()
            raise FewShotError(
                "the model's output is not finite; the weights are damaged, or amp: fp16 overflows"
            )
        seconds = time.perf_counter() - begin + (0 if partial is None else partial.seconds)
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

    def _facts(
        self, model: FewShotModel, jobs: Sequence[Job], options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """All that counts depend on, by the names under which the screen speaks of it."""
        keys = {k: v for section in self.cfg.to_dict().values() for k, v in section.items()}
        tasks = [task for job in jobs for task in job.tasks]
        used = {p for t in tasks for p in (t.episode.query, *t.episode.supports)}
        batch = episodes_at_once(self.cfg, self.device)
        return {
            "configuration": {k: v for k, v in keys.items() if k not in SAME_COUNTS},
            "weights": fingerprint(model.state_dict()),
            "episodes": tasks,
            "pictures": files_state(self.index.pairs[position] for position in sorted(used)),
            "options": {**options, "device": self.device.type, "batch": batch},
        }
