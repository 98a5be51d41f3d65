"""Whatever stands in a list, a cache or a checkpoint: it is read, or one sentence says why not."""

from __future__ import annotations

import copy
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model import build_model
from tests.training_case import make_data
from util.config import Config, load_config
from util.data.coco import CocoFile
from util.data.index import build_index, read_list
from util.data.loader import make_plan
from util.data.sources import find_pairs
from util.runtime.errors import FewShotError
from util.train.checkpoints import CheckpointStore, read_state
from util.train.optim import build_optimizer
from util.train.progress import Progress, restore, snapshot
from util.weights.checkpoint import load_weights, trained_shot
from util.weights.export import export
from util.weights.load import model_of

FUZZ = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SCALER = torch.amp.GradScaler("cpu", enabled=False)


def reads_or_is_refused(read: Callable[[], Any], file: str) -> Any:
    """The result of ``read``, or None where it refuses ``file`` in one sentence."""
    try:
        return read()
    except FewShotError as error:
        assert file in str(error) and len(str(error)) < 1000
        return None


class Saved:
    """A checkpoint as train.py writes it, and everything that reads checkpoints."""

    def __init__(self, folder: Path) -> None:
        make_data(folder, pictures=2)
        self.cfg = load_config(folder / "stage2.yaml", ["shot", 2, "stages", 1])
        torch.manual_seed(0)
        self.model = build_model(self.cfg)
        self.optimizer = build_optimizer(self.model, self.cfg)
        self.plan = make_plan(16, self.cfg)
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        store = CheckpointStore(folder)
        at = Progress(epoch=1, iteration=9, best=0.25, best_epoch=0)
        store.save(self.snapshot(at), "best")
        self.path = store.path("best")
        self.bytes = self.path.read_bytes()
        self.state = torch.load(self.path, weights_only=True)

    def snapshot(self, at: Progress) -> dict[str, Any]:
        return snapshot(at, self.model, self.optimizer, SCALER, self.plan, self.cfg)

    def read_everywhere(self, path: Path) -> None:
        def resume() -> None:
            restore(read_state(path), self.model, self.optimizer, SCALER, self.plan, self.cfg)

        reads_or_is_refused(resume, path.name)
        reads_or_is_refused(lambda: load_weights(self.model, path, complete=True), path.name)
        shot = reads_or_is_refused(lambda: trained_shot(path), path.name)
        assert shot is None or shot >= 0
        found = reads_or_is_refused(lambda: model_of(None, path), path.name)
        assert found is None or isinstance(found[0], Config)
        reads_or_is_refused(lambda: export(path, path.with_name("learned.pth")), path.name)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Saved:
    return Saved(tmp_path_factory.mktemp("saved") / "tiny")


# ------------------------------------------------------------------------ checkpoints


def test_the_checkpoint_is_good_when_nothing_is_changed(saved, tmp_path):
    assert restore(read_state(saved.path), saved.model, saved.optimizer, SCALER, saved.plan,
                   saved.cfg) == Progress(1, 9, 0.25, 0, ("frame", "square", "stripe"))  # fmt: skip
    assert trained_shot(saved.path) == 2
    assert export(saved.path, tmp_path / "learned.pth") > 0


@FUZZ
@given(data=st.data())
def test_damaged_bytes(saved, tmp_path, data):
    """Flipped and cut, mostly in what describes the tensors: names, the pickle, the directory."""
    content = bytearray(saved.bytes)
    with zipfile.ZipFile(saved.path) as archive:
        pickled = next(i for i in archive.infolist() if i.filename.endswith("/data.pkl"))
    header = pickled.header_offset, pickled.header_offset + pickled.compress_size + 200
    places = (
        st.integers(*header)
        | st.integers(len(content) - 9000, len(content) - 1)
        | st.integers(0, len(content) - 1)
    )
    for place in data.draw(st.lists(places, min_size=1, max_size=4)):
        content[place] ^= data.draw(st.integers(1, 255))
    if data.draw(st.booleans()):
        del content[data.draw(places) :]
    path = tmp_path / "changed.pth"
    path.write_bytes(content)
    saved.read_everywhere(path)


ODD = st.sampled_from(
    [
        None, True, -1, 10**30, 2.5, float("nan"), "", "text", [], [1], {}, {"a": 1}, {1: {}},
        torch.zeros(()), torch.zeros(0), torch.ones(2, 3), torch.ones(2).to_sparse(),
        torch.ones(2, dtype=torch.complex64), torch.ones(3, dtype=torch.int8),
    ]
)  # fmt: skip


@FUZZ
@given(data=st.data())
def test_odd_entries(saved, tmp_path, data):
    """A whole file whose entries are missing, of another kind, or renamed, at any depth."""
    state = copy.deepcopy(saved.state)
    for _ in range(data.draw(st.integers(1, 3))):
        place = state
        while True:
            key = data.draw(st.sampled_from(list(place)))
            inner = place[key]
            if not isinstance(inner, dict) or not inner or data.draw(st.booleans()):
                break
            place = inner
        change = data.draw(st.sampled_from(["remove", "replace", "rename"]))
        if change == "replace":
            place[key] = copy.deepcopy(data.draw(ODD))  # later changes may go into it
        else:
            value = place.pop(key)
            if change == "rename":
                place[data.draw(st.sampled_from(["module.x", "a", "", 3, (1, 2)]))] = value
        if not state:
            break
    path = tmp_path / "changed.pth"
    torch.save(state, path)
    saved.read_everywhere(path)


# ------------------------------------------------------------------------ lists

NAMES = st.sampled_from(
    ["0.jpg", "0.png", "1.jpg", "1.png", "gone.png", "", ".", "..", "../0.png", "/etc/passwd",
     "a b.jpg", "a\0b", "\ud800", "x" * 5000, "data/0.jpg", "~/0.png", "0.jpg\n", "é.png"]
) | st.text(max_size=8)  # fmt: skip
LITERALS = st.recursive(
    NAMES | st.integers() | st.none() | st.floats() | st.booleans() | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.integers(0, 4) | NAMES, inner, max_size=3)
    ),
    max_leaves=8,
)
PAIRS = st.lists(st.tuples(NAMES, NAMES) | st.just(("0.jpg", "0.png")), max_size=4)
TABLES = st.dictionaries(st.integers(0, 5) | st.booleans(), PAIRS, max_size=3)


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", errors="replace", newline="")
    return path


@FUZZ
@given(
    lines=st.lists(st.tuples(NAMES, st.sampled_from([" ", "\t", "  ", "\t\t", ","]), NAMES)),
    ending=st.sampled_from(["\n", "\r\n", "\n\n", " \n"]),
)
def test_any_list_is_read_or_refused(saved, tmp_path, lines, ending):
    root = Path(saved.cfg.data_root)
    path = written(tmp_path / "list.txt", "".join(a + gap + b + ending for a, gap, b in lines))
    pairs = reads_or_is_refused(lambda: read_list(path, root), "list.txt")
    for pair in pairs or ():
        assert all(file.is_relative_to(root) and ".." not in file.parts for file in pair)


@FUZZ
@given(found=PAIRS.map(repr) | LITERALS.map(repr) | st.text(max_size=60),
       table=TABLES.map(repr) | LITERALS.map(repr) | st.text(max_size=60))  # fmt: skip
def test_any_published_list_is_read_or_refused(saved, tmp_path, found, table):
    path = written(tmp_path / "data_list_0.txt", found)
    written(tmp_path / "sub_class_file_list_0.txt", table)
    cfg = saved.cfg.replace(train_list=str(path))
    source = reads_or_is_refused(lambda: find_pairs(cfg, cfg.fold, "train"), "_list_0.txt")
    for pair in source.pairs if source else ():
        assert all(file.is_relative_to(cfg.data_root) for file in pair)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["format", "counts", "images", "annotations", "categories", "id"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@FUZZ
@given(counts=JSON | st.lists(st.lists(st.lists(JSON, max_size=3), max_size=2), max_size=3))
def test_any_cache_of_a_scan_is_used_or_made_anew(saved, tmp_path_factory, counts):
    """A cache with the right fingerprint and odd counts: the scan is repeated."""
    folder = tmp_path_factory.mktemp("cache")
    path = written(folder / "list.txt", "0.jpg 0.png\n1.jpg 1.png\n")
    changes = {"train_list": str(path), "protocol": "pfenet", "min_pixels": 1}
    changes["exp_root"] = str(folder)
    cfg = saved.cfg.replace(**changes, folds=[[1], [2]], split=0)
    build_index(cfg, "train")
    (cache,) = (folder / ".cache").iterdir()
    content = json.loads(cache.read_text())
    cache.write_text(json.dumps({**content, "counts": counts}))
    index = reads_or_is_refused(lambda: build_index(cfg, "train"), "")
    assert index is None or len(index.pairs) == 2


@FUZZ
@given(
    annotation=st.fixed_dictionaries(
        {}, optional={name: JSON for name in ("image_id", "category_id", "segmentation", "iscrowd")}
    ),
    whole=st.none() | JSON,
)
def test_any_annotation_file_is_read_or_refused(tmp_path, annotation, whole):
    near = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "categories": [{"id": 2, "name": "cup"}],
        "annotations": [{"image_id": 1, "category_id": 2, "segmentation": [[0, 0, 4, 0, 4, 4]]},
                        annotation],
    }  # fmt: skip
    path = written(tmp_path / "a.json", json.dumps(near if whole is None else whole))
    reads_or_is_refused(
        lambda: CocoFile(path).support_mask(Path("a.jpg"), "cup", [(8, 8)]), "a.json"
    )
