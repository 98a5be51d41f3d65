"""Which pictures an episode is made of: one sampler for every data set, model and protocol."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from util.data.index import FoldIndex
from util.runtime.errors import FewShotError


class Episode(NamedTuple):
    """One few-shot task; ``query`` and ``supports`` are positions in ``FoldIndex.pairs``."""

    index: int
    query: int
    class_id: int
    supports: tuple[int, ...]


class EpisodeSampler:
    """Episodes of ``shot`` supports about ``classes``, each a function of (seed, run, number) only.

    Episode ``e`` asks about entry ``e`` modulo the number of usable entries, for a class drawn
    uniformly among those in its mask, with supports drawn without repetition from that class's
    list, the query excepted. ``FoldIndex.entry_classes`` (protocol hsnet) fixes the class of an
    entry; ``FoldIndex.class_first`` (protocol hsnet on COCO) draws the class, then the query.

    ``absent``: the share of episodes that ask about another class instead, drawn uniformly among
    those that the query does not show; nothing is to be found there.

    A class without ``shot`` supports besides the query cannot form an episode: such choices are
    left out, and a class that has no episode at all is named in ``dropped``. Raises
    :class:`FewShotError` when nothing is left.
    """

    def __init__(
        self, index: FoldIndex, classes: Sequence[int], shot: int, seed: int, absent: float = 0.0
    ):
        if shot < 1:
            raise FewShotError(f"TRAIN.shot: {shot} given, at least 1 is needed")
        self.index, self.shot, self.seed, self.absent = index, shot, seed, absent
        wanted = set(classes)
        members = {c: frozenset(index.per_class.get(c, ())) for c in wanted}

        def usable(position: int, class_id: int) -> bool:
            others = len(members[class_id]) - (position in members[class_id])
            return others >= shot

        self._entries: list[tuple[int, tuple[int, ...]]] = []
        for number, position in enumerate(index.entries):
            choices = index.present[position]
            if index.entry_classes is not None:
                choices = (index.entry_classes[number],)
            choices = tuple(c for c in choices if c in wanted and usable(position, c))
            if choices:
                self._entries.append((position, choices))
        # A class drawn first takes its query from its own list.
        self._first = sorted(c for c in wanted if len(members[c]) > shot)
        left = set(self._first) if index.class_first else {c for _, cs in self._entries for c in cs}
        self.classes: tuple[int, ...] = tuple(sorted(left))
        self.dropped: tuple[str, ...] = tuple(index.names[c] for c in sorted(wanted - left))
        if not left:
            pictures, name = max((len(m), index.names[c]) for c, m in members.items())
            raise FewShotError(
                f"{index.source}: no class has {shot} support picture(s) besides a query "
                f"({name} has most, {pictures} in all); give a smaller shot, a smaller min_pixels "
                "or more pictures"
            )

    def __len__(self) -> int:
        return len(self._entries)

    def dropped_message(self) -> str:
        """One sentence that names the classes left out, or an empty string."""
        if not self.dropped:
            return ""
        return (
            f"{self.index.source}: left out, fewer than {self.shot} support picture(s) besides the "
            f"query: {', '.join(self.dropped)}"
        )

    def episode(self, run: int, e: int) -> Episode:
        """Episode number ``e`` of epoch or run ``run``; both at least 0."""
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, run, e])))
        if self.index.class_first:
            class_id = self._first[rng.integers(len(self._first))]
            listed = self.index.per_class[class_id]
            query = listed[rng.integers(len(listed))]
        else:
            query, choices = self._entries[e % len(self._entries)]
            class_id = choices[rng.integers(len(choices))]
        if self.absent and rng.random() < self.absent:
            others = [c for c in self.classes if c not in self.index.present[query]]
            class_id = others[rng.integers(len(others))] if others else class_id
        listed = self.index.per_class[class_id]
        # Draw among the list without the query: behind its place, everything moves up by one.
        place = bisect_left(listed, query)
        inside = place < len(listed) and listed[place] == query
        chosen = rng.choice(len(listed) - inside, self.shot, replace=False)
        supports = tuple(listed[i + (inside and i >= place)] for i in chosen)
        return Episode(e, query, class_id, supports)
