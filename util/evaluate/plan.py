"""Which episodes an evaluation asks, and in which order they are walked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from util.data.episodes import Episode, EpisodeSampler
from util.data.index import FoldIndex
from util.runtime.errors import FewShotError


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
    """All episodes about one query picture, equal supports next to each other.

    begun: some more were counted before, and with them what is counted once a query.
    """

    query: int
    tasks: tuple[Task, ...]
    begun: bool = False

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


def classes_not_asked(tasks: Sequence[Task], classes: Sequence[int]) -> list[int]:
    """Those of ``classes`` that at least one run has no episode about."""
    runs = {task.run for task in tasks}
    asked = {(task.run, task.episode.class_id) for task in tasks}
    return [c for c in classes if any((run, c) not in asked for run in runs)]


def not_asked_message(
    index: FoldIndex, classes: Sequence[int], missing: Sequence[int], runs: int, episodes: int
) -> str:
    """One sentence that names the classes ``missing`` from a run, or an empty string.

    classes: those that can form an episode; episodes: of each of the ``runs``.
    """
    if not missing:
        return ""
    where = "the run" if runs == 1 else f"at least one of the {runs} runs"
    # Class folders take turns; what a list asks about depends on its pictures.
    enough = f"at least {len(classes)}" if index.binary else "more"
    return (
        f"{index.source}: {len(missing)} of {len(classes)} classes have no episode in {where} of "
        f"{episodes} episodes: {', '.join(index.names[c] for c in missing)}; the run's mean is "
        f"that of the others; give {enough} episodes"
    )


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


def remaining(jobs: Sequence[Job], done: int) -> list[Job]:
    """The walk without its first ``done`` episodes."""
    left = []
    for job, end in zip(jobs, ends(jobs), strict=True):
        counted = len(job.tasks) - (end - done)
        if counted <= 0:
            left.append(job)
        elif counted < len(job.tasks):
            left.append(Job(job.query, job.tasks[counted:], begun=True))
    return left


def ends(jobs: Sequence[Job]) -> list[int]:
    """Number of episodes up to and with each job."""
    return list(accumulate(len(job.tasks) for job in jobs))
