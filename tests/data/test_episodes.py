"""Episodes: what they are made of, and that only (seed, run, number) decides."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from util.data.episodes import EpisodeSampler
from util.data.index import FoldIndex
from util.data.sources import Pair
from util.runtime.errors import FewShotError


def make_index(per_class, present, **more):
    """An index whose entries are the keys of ``present``, in order."""
    count = max(present, default=-1) + 1
    classes = set(per_class) | {c for cs in present.values() for c in cs}
    return FoldIndex(
        pairs=[Pair(f"{i}.jpg", f"{i}.png") for i in range(count)],
        entries=list(present),
        per_class=per_class,
        present=present,
        names={c: f"class {c}" for c in classes},
        source="list.txt",
        **more,
    )


INDEX = make_index(
    {1: [0, 1, 2, 5], 2: [1, 3, 5], 3: [4]},
    {0: (1,), 1: (1, 2), 2: (1,), 3: (2,), 4: (3,), 5: (1, 2)},
)


@st.composite
def indexes(draw):
    classes = draw(st.integers(1, 4))
    rows = draw(
        st.lists(
            st.dictionaries(st.integers(1, classes), st.booleans(), min_size=1).filter(
                lambda row: any(row.values())
            ),
            min_size=1,
            max_size=12,
        )
    )
    present = {i: tuple(sorted(row)) for i, row in enumerate(rows)}
    per_class = {c: [i for i, r in enumerate(rows) if r.get(c)] for c in range(1, classes + 1)}
    return make_index(per_class, present)


@settings(max_examples=80, deadline=None)
@given(indexes(), st.integers(1, 4), st.integers(0, 2**31), st.integers(0, 9))
def test_rules_of_an_episode(index, shot, seed, run):
    possible = {
        (p, c)
        for p in index.entries
        for c in index.present[p]
        if len(set(index.per_class[c]) - {p}) >= shot
    }
    if not possible:
        with pytest.raises(FewShotError, match="no class has"):
            EpisodeSampler(index, list(index.per_class), shot, seed)
        return
    sampler = EpisodeSampler(index, list(index.per_class), shot, seed)
    assert len(sampler) == len({p for p, _ in possible})
    assert set(sampler.classes) == {c for _, c in possible}
    left_out = set(index.per_class) - set(sampler.classes)
    assert set(sampler.dropped) == {index.names[c] for c in left_out}
    queries = sorted({p for p, _ in possible})
    for e in range(2 * len(sampler) + 1):
        episode = sampler.episode(run, e)
        assert episode == sampler.episode(run, e)
        assert episode.index == e and episode.query == queries[e % len(sampler)]
        assert (episode.query, episode.class_id) in possible
        assert len(set(episode.supports)) == shot
        assert set(episode.supports) <= set(index.per_class[episode.class_id]) - {episode.query}


def test_seed_run_and_number_matter_and_order_does_not():
    one, other = EpisodeSampler(INDEX, [1, 2, 3], 1, 5), EpisodeSampler(INDEX, [1, 2, 3], 1, 6)
    forward = [one.episode(0, e) for e in range(40)]
    backward = [one.episode(0, e) for e in reversed(range(40))]
    assert forward == backward[::-1]
    assert forward != [one.episode(1, e) for e in range(40)]
    assert forward != [other.episode(0, e) for e in range(40)]


def test_generator_is_the_documented_one():
    sampler = EpisodeSampler(INDEX, [1, 2], 2, 321)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([321, 4, 7])))
    query = [0, 1, 2, 3, 5][7 % 5]
    class_id = INDEX.present[query][rng.integers(len(INDEX.present[query]))]
    others = [p for p in INDEX.per_class[class_id] if p != query]
    supports = tuple(others[i] for i in rng.choice(len(others), 2, replace=False))
    assert sampler.episode(4, 7) == (7, query, class_id, supports)


def test_classes_and_supports_are_drawn_uniformly():
    sampler = EpisodeSampler(INDEX, [1, 2], 1, 0)
    episodes = [sampler.episode(run, 4) for run in range(4000)]  # query 5, classes 1 and 2
    drawn = Counter((episode.class_id, episode.supports[0]) for episode in episodes)
    assert set(drawn) == {(1, 0), (1, 1), (1, 2), (2, 1), (2, 3)}
    for (class_id, _), count in drawn.items():
        assert abs(count - (4000 / 6 if class_id == 1 else 4000 / 4)) < 110


@settings(max_examples=60, deadline=None)
@given(indexes(), st.integers(0, 2**31))
def test_absent_asks_about_a_class_that_the_query_does_not_show(index, seed):
    assume(any(len(listed) > 1 for listed in index.per_class.values()))
    sampler = EpisodeSampler(index, list(index.per_class), 1, seed, absent=0.5)
    for e in range(2 * len(sampler)):
        episode = sampler.episode(3, e)
        assert set(episode.supports) <= set(index.per_class[episode.class_id]) - {episode.query}
        if episode.class_id not in index.present[episode.query]:
            assert episode.class_id in sampler.classes


def test_absent_is_the_share_of_such_episodes_and_draws_classes_evenly():
    sampler = EpisodeSampler(INDEX, [1, 2, 3], 1, 0, absent=0.25)
    plain = EpisodeSampler(INDEX, [1, 2, 3], 1, 0)
    assert sampler.classes == (1, 2)  # class 3 has one picture
    asked = [sampler.episode(run, 0) for run in range(4000)]  # query 0 shows class 1 alone
    absent = [episode for episode in asked if episode.class_id == 2]
    assert abs(len(absent) - 1000) < 110
    assert {episode.supports for episode in absent} == {(1,), (3,), (5,)}
    everything = EpisodeSampler(INDEX, [1, 2], 1, 0, absent=0.99)
    queries = [everything.episode(run, 1) for run in range(50)]  # query 1 shows both
    assert all(episode.class_id in (1, 2) and 1 not in episode.supports for episode in queries)
    assert plain.episode(0, 0) == EpisodeSampler(INDEX, [1, 2, 3], 1, 0, absent=0).episode(0, 0)


def test_a_class_without_supports_is_named_once_and_left_out():
    sampler = EpisodeSampler(INDEX, [1, 2, 3], 2, 0)
    assert sampler.dropped == ("class 3",)
    assert sampler.dropped_message().count("class 3") == 1
    # Three pictures are too few for a query among them, and enough for the one beside them.
    small = make_index({1: [0, 1, 2]}, {0: (1,), 1: (1,), 2: (1,), 3: (1,)})
    sampler = EpisodeSampler(small, [1], 3, 0)
    assert len(sampler) == 1 and sampler.episode(0, 5).query == 3
    assert EpisodeSampler(INDEX, [1, 2], 1, 0).dropped_message() == ""


def test_impossible_requests_are_errors():
    with pytest.raises(FewShotError, match="list.txt: no class has 4"):
        EpisodeSampler(INDEX, [1, 2, 3], 4, 0)
    with pytest.raises(FewShotError, match="shot"):
        EpisodeSampler(INDEX, [1], 0, 0)


def test_entry_classes_fix_the_class():
    index = make_index(INDEX.per_class, INDEX.present, entry_classes=None)
    index.entries, index.entry_classes = [0, 1, 1, 3, 4], [1, 1, 2, 2, 3]
    sampler = EpisodeSampler(index, [1, 2, 3], 1, 0)
    found = [sampler.episode(9, e)[1:3] for e in range(5)]
    assert found == [(0, 1), (1, 1), (1, 2), (3, 2), (0, 1)]


def test_class_first_draws_classes_evenly_whatever_their_size():
    index = make_index({1: list(range(50)), 2: [50, 51], 3: [52]}, {}, class_first=True)
    index.entries = list(range(53))
    index.present = {i: (1 if i < 50 else 2 if i < 52 else 3,) for i in range(53)}
    index.names = {1: "a", 2: "b", 3: "c"}
    sampler = EpisodeSampler(index, [1, 2, 3], 1, 0)
    assert sampler.dropped == ("c",)
    episodes = [sampler.episode(0, e) for e in range(1000)]
    drawn = Counter(episode.class_id for episode in episodes)
    assert set(drawn) == {1, 2} and abs(drawn[1] - 500) < 60
    for episode in episodes:
        places = index.per_class[episode.class_id]
        assert episode.query in places and set(episode.supports) <= set(places) - {episode.query}
