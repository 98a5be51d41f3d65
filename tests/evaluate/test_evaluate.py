"""The evaluation engine: against the naive loop, under every budget, split over processes."""

from __future__ import annotations

import json
import math
import os
import signal
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from model import build_model
from model.fewshot import FewShotModel, Output
from tests.equality import bits, same_counts
from tests.models import build, episode
from tests.models import run as forward
from util.config import load_config
from util.data.episodes import Episode
from util.data.index import FoldIndex, build_index
from util.data.transform import restore
from util.evaluate import (
    Evaluator,
    Job,
    Partial,
    Task,
    episodes_at_once,
    plan_jobs,
    plan_tasks,
)
from util.evaluate.cache import ByteCache, budgets, free_memory
from util.evaluate.reader import PictureReader
from util.runtime import distributed
from util.runtime.errors import FewShotError, Interrupted
from util.weights.load import weight_file

pytestmark = pytest.mark.numeric

CLASSES = 6
NAMES = [f"class {i}" for i in range(1, CLASSES + 1)]


def make_data(root: Path, pictures: int = 14, seed: int = 0) -> Path:
    """Pictures of several sizes, each with two rectangles of different classes; the config."""
    rng = np.random.default_rng(seed)
    (root / "data").mkdir(parents=True)
    lines = []
    for number in range(pictures):
        height, width = (int(x) for x in rng.integers(30, 60, 2))
        image = rng.integers(0, 90, (height, width, 3), np.uint8)
        mask = np.zeros((height, width), np.uint8)
        for place, class_id in enumerate((number % CLASSES + 1, (number + 1) % CLASSES + 1)):
            top, left = int(rng.integers(0, 8)), int(rng.integers(0, 4)) + place * width // 2
            patch = slice(top, top + 18), slice(left, left + 11)
            mask[patch] = class_id
            image[patch] = image[patch] // 2 + np.uint8(30 * class_id % 200)
        mask[:2, :5] = 255
        cv2.imwrite(str(root / f"data/{number}.png"), image)
        cv2.imwrite(str(root / f"data/{number}_mask.png"), mask)
        lines.append(f"{number}.png {number}_mask.png")
    (root / "list.txt").write_text("\n".join(lines))
    text = f"""
        DATA: {{data_set: tiny, data_root: {root}/data, train_list: {root}/list.txt,
          val_list: {root}/list.txt, class_names: {json.dumps(NAMES)}, min_pixels: 20,
          folds: [[1, 2, 3], [4, 5, 6]]}}
        TRAIN: {{split: 1, val_size: 49, workers: 0, exp_root: {root}/exp}}
        EVALUATE: {{episodes: 24, runs: 2, cache_gb: 1}}
        Method: {{backbone: resnet18, width: 8}}
    """
    config = root / "tiny.yaml"
    config.write_text(text)
    return config


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("tiny"))


class Encoding(NamedTuple):
    colours: Tensor
    mask: Tensor


class ColourModel(FewShotModel):
    """A stand-in: similarity of a query pixel's colour to the supports' mean object colour.

    It counts its calls, and its frozen part is apart from its learned one (``gain``).
    """

    frozen = ("encoder",)

    def __init__(self, base: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Conv2d(3, 4, 3, padding=1)
        self.gain = nn.Parameter(torch.ones(()))
        self.base_channels = base
        self.calls: Counter[str] = Counter()
        self.freeze()

    def encode_query(self, image: Tensor) -> Encoding:
        self.calls["query"] += image.shape[0]
        return Encoding(self.encoder(image), image[:, 0])

    def encode_support(self, image: Tensor, mask: Tensor) -> Encoding:
        self.calls["support"] += image.shape[0]
        return Encoding(self.encoder(image), (mask == 1).float())

    def prepare_support(self, encoding: Encoding) -> Tensor:
        self.calls["prepare"] += 1
        weight = encoding.mask[:, None]
        total = (encoding.colours * weight).sum((2, 3)) / (weight.sum((2, 3)) + 1e-3)
        return total * self.gain

    def match(self, query, supports, size, class_index=None) -> Output:
        self.calls["match"] += 1
        colour = supports.mean(1)[:, :, None, None]
        near = -(query.colours - colour).square().sum(1, keepdim=True)
        final = torch.cat([torch.full_like(near, -0.5), near], dim=1)
        base = query.colours[:, : 1 + self.base_channels]
        prior = torch.tanh(query.colours[:, :2, ::4, ::4])
        return Output(final, 2 * final.flip(3), base, prior, [])


def lively(**changes) -> FewShotModel:
    """A random HDMNet that calls about half of the pixels object."""
    model = build(**changes)
    data = episode((49, 49), shot=changes.get("shot", 1))
    with torch.no_grad():
        background, found = forward(model, data).meta.unbind(1)
        model.decoder.head[-1].bias[1] += (background - found).median()
    return model


def evaluator_of(config: Path, *overrides, mode: str = "test", **options) -> Evaluator:
    cfg = load_config(config, overrides)
    return Evaluator(cfg, build_index(cfg, mode), **options)


def counts_of(result) -> dict[str, Tensor]:
    tally = result.counts
    named = {"counts": tally.counts, "base": tally.base, "prior": tally.prior}
    return {name: value.counts for name, value in named.items() if value is not None}


def evaluate(config, model, *overrides, seeds=(5, 6), episodes=24, options=None, **run):
    evaluator = evaluator_of(config, *overrides, **(options or {}))
    return evaluator.run(model, seeds, episodes, progress=False, **run)


def same(one, two) -> bool:
    """The same computation twice: equal counts."""
    assert "counts" in counts_of(one)
    return bits(counts_of(one), counts_of(two))


# ------------------------------------------------------------------------------- the naive loop


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shot", [1, 3])
@pytest.mark.parametrize("cache_gb", [1, 0])
def test_the_walk_counts_what_the_naive_loop_counts(
    config, shot, cache_gb, dtype, decided, request
) -> None:
    """Supports are encoded one by one here and K at once there: sums in another order."""
    if dtype == torch.float64:
        request.getfixturevalue("in_double")
    model = lively(num_base=3, shot=shot, compute="textbook").to(dtype)
    changes = ("shot", shot, "compute", "textbook", "cache_gb", cache_gb)
    walk = evaluate(config, model, *changes, episodes=12, baselines=True)
    naive = evaluate(config, model, *changes, episodes=12, baselines=True, engine="naive")
    assert counts_of(walk).keys() == {"counts", "base", "prior"}
    assert same_counts(walk, naive)
    assert {values.dtype for values, _ in walk.counts.decided.values()} == {dtype}
    assert walk.counts.counts.counts[..., 1].sum() > 0, "nothing was found: the test is blind"
    assert naive.timing["encoder_passes"] == 2 * 12 * (1 + shot)
    assert walk.timing["encoder_passes"] < naive.timing["encoder_passes"]


@pytest.mark.parametrize(
    "changes, device, expected",
    [
        ((), "cpu", 13),
        (("val_size", 473), "cpu", 1),
        (("val_size", 473), "cuda", 4),
        (("val_size", 473, "shot", 5), "cuda", 1),
        (("compute", "textbook"), "cpu", 1),
        (("compute", "textbook", "batch_size_val", 6), "cpu", 6),
        (("val_size", 633, "batch_size_val", 8), "cpu", 8),
    ],
)
def test_as_many_episodes_at_once_as_suit_the_device(config, changes, device, expected) -> None:
    cfg = load_config(config, ["val_size", 97, *changes])
    assert episodes_at_once(cfg, torch.device(device)) == expected


def test_the_fast_model_in_batches_counts_what_the_textbook_model_counts(config, in_double) -> None:
    fast, textbook = (lively(num_base=3, compute=c).double() for c in ("fast", "textbook"))
    textbook.load_state_dict(fast.state_dict())
    walk = evaluate(config, fast, "batch_size_val", 5, baselines=True)
    options = {"baselines": True, "engine": "naive"}
    assert same_counts(walk, evaluate(config, textbook, "compute", "textbook", **options))


@pytest.mark.parametrize(
    "changes",
    [
        ("resized_val", False),
        ("ori_resize", False),
        ("resized_val", False, "ori_resize", False),
        ("ann_type", "bbox"),
        ("workers", 2),
        ("workers", 2, "cache_gb", 0),
        ("workers", 1, "cache_gb", 1e-5),
        ("shot", 3, "cache_gb", 5e-5),
        ("batch_size_val", 7),
    ],
    ids=lambda changes: "-".join(map(str, changes)),
)
def test_every_way_of_walking_gives_the_naive_counts(config, changes, decided) -> None:
    model = ColourModel()
    walk = evaluate(config, model, *changes, baselines=True)
    naive = evaluate(config, model, *changes, "workers", 0, baselines=True, engine="naive")
    assert same_counts(walk, naive)


def test_scores_are_those_of_the_prediction_resized_to_the_picture(config) -> None:
    """One episode by hand, at the picture's own size and padded at the network's size."""
    for changes in (("resized_val", True), ("resized_val", False)):
        evaluator = evaluator_of(config, *changes)
        model = ColourModel()
        result = evaluator.run(model, [3], 1, progress=False)
        ((task,), _) = plan_tasks(evaluator.index, (4, 5, 6), 1, [3], 1)
        query = evaluator.dataset[task.episode.query]
        support = evaluator.dataset[task.episode.supports[0]]
        mask = (support.mask == task.episode.class_id).to(torch.uint8)
        image, other = evaluator.on_device(query), evaluator.on_device(support)
        with torch.no_grad():
            final = model(image, other[None], mask[None, None]).final
        height, width = query.content
        final = final[:, :, :height, :width]
        final = nn.functional.interpolate(
            final, query.target.shape, mode="bilinear", align_corners=True
        )
        found, true = final.argmax(1)[0] == 1, query.target == task.episode.class_id
        valid = query.target != 255
        hit = int((found & true & valid).sum())
        union = int(((found | true) & valid).sum())
        assert 0 < hit < union
        assert result.mean["miou"] == hit / union


# ---------------------------------------------------------------------------- work that is saved


def test_every_distinct_query_and_support_is_encoded_and_read_once(config) -> None:
    model, results = ColourModel(), []
    for workers in (0, 2):
        model.calls.clear()
        evaluator = evaluator_of(config, "workers", workers)
        tasks, _ = plan_tasks(evaluator.index, evaluator.classes, 1, (5, 6), 60)
        queries = {task.episode.query for task in tasks}
        supports = {key for task in tasks for key in task.keys}
        result = evaluator.run(model, (5, 6), 60, progress=False)
        assert model.calls["query"] == result.timing["query_encodings"] == len(queries)
        assert model.calls["support"] == result.timing["support_encodings"] == len(supports)
        assert model.calls["prepare"] == len(supports) < 60
        pictures = queries | {position for position, _ in supports}
        assert result.timing["pictures_read"] == len(pictures)
        results.append(result)
    assert same(*results)


def test_validation_computes_the_frozen_part_once_for_all_epochs(config, decided) -> None:
    evaluator = evaluator_of(config, "workers", 1, mode="val", keep_frozen=True)
    model = ColourModel()
    model.train()
    first = evaluator.run(model, [7], 30, progress=False)
    passes = first.timing["encoder_passes"]
    assert passes > 0 and model.training
    again = evaluator.run(model, [7], 30, progress=False)
    assert same(first, again)
    assert again.timing["encoder_passes"] == again.timing["pictures_read"] == 0
    with torch.no_grad():
        model.gain.fill_(3.0)  # the learned part moves on between epochs
    moved = evaluator.run(model, [7], 30, progress=False)
    assert moved.timing["encoder_passes"] == 0
    assert not same(first, moved)
    assert same_counts(moved, evaluate(config, model, seeds=[7], episodes=30, engine="naive"))
    evaluator.forget()
    assert evaluator.run(model, [7], 30, progress=False).timing["encoder_passes"] == passes


def test_a_budget_too_small_for_everything_keeps_a_part(config) -> None:
    model = ColourModel()
    counts, kept = [], []
    for cache_gb in (1, 1.5e-4, 0):
        evaluator = evaluator_of(config, "cache_gb", cache_gb, mode="val", keep_frozen=True)
        evaluator.run(model, [7], 30, progress=False)
        again = evaluator.run(model, [7], 30, progress=False)
        counts.append(again.timing["encoder_passes"])
        kept.append(again)
    assert counts[0] == 0 < counts[1] < counts[2]
    assert same(kept[0], kept[1]) and same(kept[0], kept[2])


# ------------------------------------------------------------------------------------- processes


STOPPED = "two processes, each stopped after a batch and started again"
SCENARIOS = {
    # processes, episodes of each of two runs, is a picture broken, model
    "two processes": (2, 24, False, "HDMNet"),
    "three processes, uneven shares": (3, 23, False, "HDMNet"),
    "three processes, two queries": (3, 1, False, "HDMNet"),
    "a bad picture": (2, 24, True, "HDMNet"),
    "another model": (3, 11, False, "HSNet"),
    STOPPED: (2, 24, False, "HDMNet"),
}


def _process(rank: int, config: Path, broken: Path, output: Path) -> None:
    """All scenarios in one set of processes: starting them is what takes time."""
    torch.set_num_threads(1)
    for number, (name, (ranks, episodes, bad, arch)) in enumerate(SCENARIOS.items()):
        if rank >= ranks:
            continue
        meet = f"file://{output}/meet{number}"  # no port that another program might take
        torch.distributed.init_process_group("gloo", meet, rank=rank, world_size=ranks)
        kept = {}
        if name == STOPPED:
            stop = SimpleNamespace(asked=True, name="SIGTERM")
            with pytest.raises((Interrupted, SystemExit)):
                split(config, episodes, arch, partial=Partial(output / "r.json", stop))
            assert (output / f"r.json.{rank}of2.partial").exists()
            kept = {"partial": Partial(output / "r.json", SimpleNamespace(asked=False))}
        try:
            found = json_of(config, split(broken if bad else config, episodes, arch, **kept))
        except FewShotError as error:
            found = {"message": str(error)}
        (output / f"{number}_{rank}.json").write_text(json.dumps(found))
        distributed.cleanup()


def split(config: Path, episodes: int, arch: str, **more):
    options = ("arch", arch, "stem", "7x7") if arch == "HSNet" else ()
    torch.manual_seed(0)
    model = build_model(load_config(config, options)) if options else lively(num_base=3)
    more |= {"episodes": episodes, "baselines": True, "details": True}
    more["generalized"] = arch == "HDMNet"
    return evaluate(config, model, *options, **more)


def json_of(config: Path, result) -> dict:
    content = result.to_json(load_config(config), "best.pth")
    work = content.pop("timing")
    assert work["encoder_passes"] == work["query_encodings"] + work["support_encodings"]
    scored = [[None if math.isnan(iou) else iou, list(e)] for iou, e in result.scored]
    return json.loads(json.dumps(content | {"scored": scored, "leakage": result.leakage}))


def test_any_number_of_processes_gives_exactly_the_result_of_one(config, tmp_path) -> None:
    broken = make_data(tmp_path / "bad")
    bad = evaluator_of(broken).index.entries[0]  # scanned while it was whole
    (tmp_path / f"bad/data/{bad}.png").write_bytes(b"\x89PNG\r\n\x1a\n truncated")
    mp.spawn(_process, (config, broken, tmp_path), nprocs=3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for number, (ranks, episodes, bad_picture, arch) in enumerate(SCENARIOS.values()):
        files = [tmp_path / f"{number}_{rank}.json" for rank in range(ranks)]
        found = [json.loads(file.read_text()) for file in files]
        if bad_picture:
            messages = {content["message"] for content in found}
            assert len(messages) == 1 and f"{bad}.png" in messages.pop()
        else:
            alone = json_of(config, split(config, episodes, arch))
            assert all(content == alone for content in found)
            assert sum(map(sum, (row.values() for row in alone["leakage"].values()))) > 0
    torch.set_num_threads(threads)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 3)), min_size=1, max_size=50),
    st.integers(1, 6),
)
def test_shares_cover_every_episode_once_and_keep_queries_together(items, ranks) -> None:
    tasks = [
        Task(0, Episode(e, query, class_id, (e % 7,)), class_id)
        for e, (query, class_id) in enumerate(items)
    ]
    shares = [plan_jobs(tasks, rank, ranks) for rank in range(ranks)]
    walked = [task for share in shares for job in share for task in job.tasks]
    assert sorted(task.episode.index for task in walked) == list(range(len(items)))
    queries = [job.query for share in shares for job in share]
    assert len(queries) == len(set(queries))
    largest = max(len(job.tasks) for share in shares for job in share)
    for share in shares:
        amount = sum(len(job.tasks) for job in share)
        assert abs(amount - len(items) / ranks) <= largest


# ------------------------------------------------------------------------------ what is reported


def test_the_result_has_exactly_the_published_fields(config) -> None:
    content = evaluate(config, ColourModel()).to_json(load_config(config), "a.pth")
    json.dumps(content, allow_nan=False)
    assert content.pop("classes_from") == "DATA.folds", "no published split: it is named"
    assert list(content) == [
        "dataset", "arch", "backbone", "split", "shot", "weight", "trained", "episodes", "runs",
        "mean", "std", "ci95", "timing", "parameters", "folds", "not_asked", "left_out", "settings",
    ]  # fmt: skip
    assert (content["parameters"], content["folds"]) == (1, 2), "gain alone is learned"
    assert content["settings"] == {
        "protocol": "bam", "trained_on": None, "val_size": 49, "resized_val": True,
        "ori_resize": True, "min_pixels": 20, "width": 8,
    }  # fmt: skip
    metrics = ["miou", "fb_iou", "miou_meta", "fb_iou_meta", "miou_base"]
    for run, seed in zip(content["runs"], (5, 6), strict=True):
        assert list(run) == ["seed", *metrics, "class_iou"] and run["seed"] == seed
        assert list(run["class_iou"]) == NAMES[3:]
        assert run["miou"] == pytest.approx(sum(run["class_iou"].values()) / 3)
        assert all(0 <= run[name] <= 1 for name in metrics)
    for name in metrics:
        one, two = (run[name] for run in content["runs"])
        assert content["mean"][name] == pytest.approx((one + two) / 2)
        assert content["std"][name] == pytest.approx(abs(one - two) / 2**0.5)
    means = evaluate(config, ColourModel()).class_iou
    assert list(means) == ["final", "meta"]
    for name in NAMES[3:]:
        values = [run["class_iou"][name] for run in content["runs"]]
        assert means["final"][name] == pytest.approx(sum(values) / 2)
    assert content["timing"]["encoder_passes"] > 0
    assert content["timing"]["episodes_per_second"] > 0


def test_a_model_without_meta_and_base_reports_none(config) -> None:
    class Plain(ColourModel):
        def match(self, *args, **kwargs) -> Output:
            out = super().match(*args, **kwargs)
            return out._replace(meta=None, base=None, prior=None)

    result = evaluate(config, Plain(), seeds=[1], baselines=True)
    assert list(result.class_iou) == ["final"]
    assert result.mean["miou_meta"] is result.runs[0]["miou_base"] is result.std["miou"] is None
    assert result.baselines["prior"] is None and result.baselines["all_foreground"]["miou"] > 0
    assert "meta" not in result.table() and "-" not in result.comparison().split("\n")[1]


def test_details_are_the_episodes_of_the_first_run(config) -> None:
    alone = ("batch_size_val", 1)  # with more, other episodes would share a batch
    result = evaluate(config, ColourModel(), *alone, details=True)
    assert [episode.index for _, episode in result.scored] == list(range(24))
    again = evaluate(config, ColourModel(), *alone, seeds=[5], details=True)
    assert result.scored == again.scored
    assert any(0 < iou < 1 for iou, _ in result.scored if not math.isnan(iou))
    # Every predicted pixel that counts is somewhere in the leakage table.
    found = result.counts.counts.counts[:, :, 0, 1].sum(0).tolist()
    for class_id, pixels in zip((4, 5, 6), found, strict=True):
        assert sum(result.leakage[NAMES[class_id - 1]].values()) == pixels


def test_swapped_supports_show_another_class(config, decided) -> None:
    index = evaluator_of(config).index
    plain, _ = plan_tasks(index, (4, 5, 6), 1, (1, 2), 40)
    tasks, _ = plan_tasks(index, (4, 5, 6), 1, (1, 2), 40, swap_supports=True)
    assert tasks == plan_tasks(index, (4, 5, 6), 1, (1, 2), 40, swap_supports=True)[0]
    for before, after in zip(plain, tasks, strict=True):
        old, new = before.episode, after.episode
        assert (old.index, old.query, old.class_id) == (new.index, new.query, new.class_id)
        assert after.support_class != new.class_id
        assert new.query not in new.supports
        assert set(new.supports) <= set(index.per_class[after.support_class])
    assert len({task.support_class for task in tasks}) == 3
    model = ColourModel()
    swapped = evaluate(config, model, swap_supports=True)
    assert same_counts(swapped, evaluate(config, model, swap_supports=True, engine="naive"))
    assert swapped.mean["miou"] < evaluate(config, model).mean["miou"]


def test_one_usable_class_cannot_be_swapped(config) -> None:
    index = evaluator_of(config).index
    with pytest.raises(FewShotError, match="only class"):
        plan_tasks(index, (4,), 1, (1,), 5, swap_supports=True)


def test_a_class_without_supports_is_named_once_and_left_out(config, capsys) -> None:
    evaluator = evaluator_of(config)
    evaluator.index.per_class[5] = []
    for _ in range(2):
        result = evaluator.run(ColourModel(), [1], 12, progress=False)
    assert capsys.readouterr().out.count("class 5") == 1
    assert result.runs[0]["class_iou"]["class 5"] is None
    known = [v for v in result.runs[0]["class_iou"].values() if v is not None]
    assert len(known) == 2 and result.mean["miou"] == pytest.approx(sum(known) / 2)


def test_damaged_weights_are_an_error_not_a_score(config) -> None:
    model = ColourModel()
    with torch.no_grad():
        model.gain.fill_(torch.nan)
    with pytest.raises(FewShotError, match="not finite"):
        evaluate(config, model)
    assert model.training, "the model is left as it was"


def test_a_bad_picture_is_one_sentence_from_worker_processes_too(tmp_path) -> None:
    config = make_data(tmp_path / "bad")
    used = evaluator_of(config).index.entries[0]
    (tmp_path / f"bad/data/{used}.png").write_bytes(b"nonsense")
    for workers in (0, 2):
        with pytest.raises(FewShotError) as caught:
            evaluate(config, ColourModel(), "workers", workers)
        assert f"{used}.png" in str(caught.value) and "\n" not in str(caught.value)


def test_a_size_that_the_model_cannot_take_is_named(config) -> None:
    class Picky(ColourModel):
        def check_size(self, height: int, width: int) -> None:
            raise ValueError("take 50")

    with pytest.raises(FewShotError, match="val_size: take 50"):
        evaluate(config, Picky())


def test_an_unknown_engine_is_refused(config) -> None:
    with pytest.raises(ValueError, match="fly"):
        evaluate(config, ColourModel(), engine="fly")


def test_weight_file_order(config, tmp_path) -> None:
    cfg = load_config(config)
    with pytest.raises(FewShotError, match=r"best\.pth"):
        weight_file(cfg)
    for name in ("given", "configured"):
        (tmp_path / name).touch()
    configured = cfg.replace(weight=str(tmp_path / "configured"))
    assert weight_file(configured).name == "configured"
    assert weight_file(configured, tmp_path / "given").name == "given"


def test_restore_crops_the_padding_before_it_resizes() -> None:
    logits = torch.zeros(1, 1, 8, 8)
    logits[..., 4:, :] = 100
    assert restore(logits, (4, 8), (16, 16)).max() == 0
    assert restore(logits, (8, 8), (16, 16)).max() > 99
    assert restore(logits.half(), (4, 8), (4, 8)).dtype == torch.float32


# ----------------------------------------------------------------------------- cache and reader


def test_the_cache_admits_until_full_and_gives_bytes_back() -> None:
    cpu = torch.device("cpu")
    cache = ByteCache([(cpu, 100)])
    value = (torch.zeros(10), (torch.zeros(5), None), 7)  # 60 bytes
    assert cache.put("a", value) and cache.put("a", value)
    assert not cache.put("b", value) and cache.put("c", torch.zeros(10))
    assert cache.get("b", cpu) is None and len(cache) == 2
    kept = cache.get("a", cpu)
    assert kept[1][1] is None and kept[2] == 7 and kept[0].shape == (10,)
    cache.drop("a")
    cache.drop("a")
    assert cache.put("b", value) and "a" not in cache
    cache.clear()
    assert cache.left == [100]


def test_a_view_is_kept_without_the_storage_behind_it() -> None:
    cache = ByteCache([(torch.device("cpu"), 1000)])
    batch = torch.arange(1000.0).reshape(100, 10)
    assert cache.put("row", batch[3:4]), "40 bytes, not 4000"
    kept = cache.get("row", torch.device("cpu"))
    assert torch.equal(kept, batch[3:4]) and kept.untyped_storage().nbytes() == 40


def test_budgets() -> None:
    cpu = torch.device("cpu")
    assert budgets(cpu, 0.5) == [(cpu, 1 << 29)]
    ((place, size),) = budgets(cpu, None)
    assert place == cpu and 0 < size <= free_memory(cpu)


class Recorder:
    """A data set of one-element pictures that notes what is read."""

    def __init__(self, broken: tuple[int, ...] = ()) -> None:
        self.read: list[int] = []
        self.broken = broken

    def __getitem__(self, position: int) -> tuple[Tensor]:
        self.read.append(position)
        if position in self.broken:
            raise FewShotError(f"{position}.jpg is broken")
        return (torch.tensor([position]),)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("room", [0, 10**6])
def test_the_reader_delivers_in_any_order_of_demand(workers, room) -> None:
    demand = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7]
    reader = PictureReader(Recorder(), lambda p: True, workers, room)
    reader.start(iter(demand))
    # 7 comes early, 11 was never announced.
    for position in [3, 1, 7, 4, 11, 1, 5, 9, 2, 6, 5, 3, 5, 8]:
        assert int(reader.get(position)[0]) == position
    reader.stop()


def test_the_reader_raises_the_pictures_own_error(config) -> None:
    reader = PictureReader(Recorder(broken=(4,)), lambda p: True, 1, 100)
    reader.start(iter([1, 4, 2]))
    assert int(reader.get(1)[0]) == 1
    with pytest.raises(FewShotError, match=r"^4\.jpg is broken$"):
        reader.get(4)
    reader.stop()


class Deadly:
    def __getitem__(self, position: int) -> tuple[Tensor]:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_process_is_one_sentence() -> None:
    reader = PictureReader(Deadly(), lambda p: True, 1, 100)
    reader.start(iter([1, 2, 3]))
    with pytest.raises(FewShotError, match="process died"):
        reader.get(1)
    reader.stop()


def test_jobs_list_their_supports_in_the_order_of_use() -> None:
    tasks = tuple(Task(0, Episode(e, 9, 1, s), 1) for e, s in enumerate([(3, 1), (1, 2), (3, 1)]))
    assert Job(9, tasks).keys == [(3, 1), (1, 1), (2, 1)]
    assert isinstance(FoldIndex([], [], {}, {}).label(3), int)
