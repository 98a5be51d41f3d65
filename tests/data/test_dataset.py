"""Training items, stage-1 items and evaluation pictures, from files to tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from util.config import load_config
from util.data.dataset import EpisodeDataset, PictureDataset, SegmentationDataset
from util.data.index import build_index
from util.data.transform import normalise, object_mask, read_pair
from util.runtime.errors import FewShotError

CLASSES = 4  # ids 1..4; split 0 holds out class 1, so class c is channel c - 1


def save_pair(root, name, classes, size, seed):
    """Coloured bars: bar i of the picture is class classes[i], brightness 40 times its id."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(size, np.uint8)
    for i, class_id in enumerate(classes):
        mask[:, 4 + 14 * i : 15 + 14 * i] = class_id
    mask[:2] = 255
    image = (40 * (mask % 255))[..., None] + rng.integers(0, 8, (*size, 3))
    for folder, array, kind in (("images", image, "jpg"), ("masks", mask, "png")):
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array.astype(np.uint8)).save(root / folder / f"{name}.{kind}", quality=95)
    return f"images/{name}.jpg masks/{name}.png"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    kinds = [(2,), (3,), (4,), (2, 3), (3, 4), (1, 2), (1,), (1, 4)]
    lines = [
        save_pair(root, f"{i}", kinds[i % len(kinds)], (44 + i % 5, 60 + i % 3), i)
        for i in range(24)
    ]
    (root / "list.txt").write_text("\n".join(lines))
    (root / "own.yaml").write_text(
        f"DATA:\n  data_set: mine\n  data_root: {root}\n  train_list: {root}/list.txt\n"
        f"  val_list: {root}/list.txt\n  class_names: [a, b, c, d]\n  folds: [[1]]\n"
        "  min_pixels: 50\nTRAIN:\n  train_h: 41\n  train_w: 41\n  val_size: 49\n  shot: 2\n"
        f"  exp_root: {root}/exp\n"
    )
    return root


def make(folder, *overrides):
    return load_config(folder / "own.yaml", list(overrides))


def episodes_of(folder, *overrides, **more):
    cfg = make(folder, *overrides)
    return EpisodeDataset(cfg, build_index(cfg, "train"), **more)


def same(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a
    )


def test_an_item_is_what_the_models_take(folder):
    dataset = episodes_of(folder)
    for e in range(len(dataset)):
        item = dataset[e]
        assert item["query_image"].shape == (3, 41, 41)
        assert item["query_image"].dtype == torch.float32
        assert item["query_mask"].shape == item["base_mask"].shape == (41, 41)
        assert item["query_mask"].dtype == item["base_mask"].dtype == torch.int64
        assert item["support_images"].shape == (2, 3, 41, 41)
        assert item["support_masks"].shape == (2, 41, 41)
        assert item["support_masks"].dtype == torch.uint8
        assert item["class_index"] == item["class_id"] - 2 and item["class_id"] in (2, 3, 4)
        assert set(item["query_mask"].unique().tolist()) <= {0, 1, 255}
        assert set(item["support_masks"].unique().tolist()) <= {0, 1, 255}
        assert set(item["base_mask"].unique().tolist()) <= {0, 1, 2, 3, 255}
        # The base target's number of the episode's class marks the query mask's object.
        own = item["base_mask"] == item["class_index"] + 1
        assert torch.equal(own, item["query_mask"] == 1) and own.any()
        assert torch.equal(item["base_mask"] == 255, item["query_mask"] == 255)
        assert len(item["files"]) == 3 and len(set(item["files"])) == 3


def test_without_augmentation_an_item_is_its_resized_files(folder):
    dataset = episodes_of(folder, "augment", False, "train_h", 44, "train_w", 60)
    e = 0  # 44 x 60 pixels: no resize at all
    item = dataset[e]
    image, labels = read_pair(
        item["files"][0], item["files"][0].replace("images", "masks")[:-3] + "png"
    )
    assert torch.equal(item["query_image"], normalise(image))
    expected = object_mask(labels, item["class_id"])
    assert (item["query_mask"].numpy() == expected).all()
    assert (item["base_mask"].numpy() == dataset.fold.lut()[labels]).all()


def test_supports_show_the_episodes_class(folder):
    dataset = episodes_of(folder)
    for e in range(len(dataset)):
        item = dataset[e]
        for image, mask in zip(item["support_images"], item["support_masks"], strict=True):
            inside = image[1][mask == 1] * 57.12 + 116.28  # the green channel as bytes
            assert abs(float(inside.median()) - (40 * item["class_id"] + 3.5)) < 12


def test_an_absent_class_is_nowhere_and_the_base_targets_stay(folder):
    dataset = episodes_of(folder, "absent", 0.5)
    items = [dataset[e] for e in range(len(dataset))]
    absent = [item for item in items if not (item["query_mask"] == 1).any()]
    assert 0 < len(absent) < len(items)
    for item in absent:
        assert not (item["base_mask"] == item["class_index"] + 1).any()
        assert (item["base_mask"] % 255 > 0).any(), "what is there is still labelled"
        assert (item["support_masks"] == 1).any()


def test_novel_classes_are_background_under_pfenet(folder):
    dataset = episodes_of(folder, "protocol", "pfenet", "augment", False)
    shown = [e for e in range(len(dataset)) if 1 in _labels(dataset, e)]
    assert shown
    for e in shown:
        item = dataset[e]
        assert set(item["base_mask"].unique().tolist()) <= {0, item["class_index"] + 1, 255}


def _labels(dataset, e):
    position = dataset.sampler.episode(0, e).query
    return np.unique(read_pair(*dataset.index.pairs[position])[1]).tolist()


def test_boxes_are_drawn_for_supports_only(folder):
    masks, boxes = (episodes_of(folder, "augment", False, "ann_type", t) for t in ("mask", "bbox"))
    for e in range(len(masks)):
        a, b = masks[e], boxes[e]
        assert torch.equal(a["query_mask"], b["query_mask"])
        assert ((a["support_masks"] == 1) <= (b["support_masks"] == 1)).all()


def test_items_depend_on_seed_epoch_and_number_only(folder):
    one, two = episodes_of(folder), episodes_of(folder)
    one.set_epoch(3)
    two.set_epoch(3)
    backwards = {e: two[e] for e in reversed(range(len(two)))}
    assert all(same(one[e], backwards[e]) for e in range(len(one)))
    two.set_epoch(4)
    assert not any(same(one[e], two[e]) for e in range(len(one)))
    other = episodes_of(folder, "manual_seed", 5)
    other.set_epoch(3)
    assert not all(same(one[e], other[e]) for e in range(len(one)))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_worker_processes_make_the_same_items_and_follow_the_epoch(folder, batch_size):
    dataset, plain = episodes_of(folder), episodes_of(folder)
    loader = DataLoader(dataset, batch_size, num_workers=2, persistent_workers=True)
    for epoch in (0, 7):
        dataset.set_epoch(epoch)
        plain.set_epoch(epoch)
        e = 0
        for batch in loader:
            for i in range(len(batch["class_id"])):
                item = plain[e]
                for key in ("query_image", "query_mask", "base_mask", "support_masks"):
                    assert torch.equal(batch[key][i], item[key])
                assert [files[i] for files in batch["files"]] == item["files"]
                e += 1
        assert e == len(plain)


def test_shot_can_be_given(folder):
    assert episodes_of(folder, shot=1)[0]["support_images"].shape[0] == 1
    with pytest.raises(FewShotError, match="no class has 9 support"):
        episodes_of(folder, "shot", 9)


def test_a_bad_file_is_named(folder, tmp_path):
    dataset = episodes_of(folder)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 half a picture")
    position = dataset.sampler.episode(0, 0).query
    dataset.index.pairs[position] = dataset.index.pairs[position]._replace(
        image=tmp_path / "broken.jpg"
    )
    with pytest.raises(FewShotError, match="broken.jpg"):
        dataset[0]


# ---------------------------------------------------------------------------- stage 1


def test_stage_1_items_number_the_base_classes(folder):
    cfg = make(folder)
    dataset = SegmentationDataset(cfg, build_index(cfg, "train"))
    seen = set()
    for i in range(len(dataset)):
        item = dataset[i]
        assert item["image"].shape == (3, 41, 41) and item["image"].dtype == torch.float32
        assert item["mask"].shape == (41, 41) and item["mask"].dtype == torch.int64
        seen |= set(item["mask"].unique().tolist())
        assert len(item["files"]) == 1
    assert seen == {0, 1, 2, 3, 255}
    first = dataset[0]
    dataset.set_epoch(1)
    assert not same(first, dataset[0])
    dataset.set_epoch(0)
    assert same(first, dataset[0])


def test_stage_1_takes_a_picture_once_under_protocol_hsnet(folder):
    cfg = make(folder, "protocol", "hsnet")
    index = build_index(cfg, "train")
    dataset = SegmentationDataset(cfg, index)
    assert len(dataset) == len(set(index.entries)) < len(index.entries)


# ---------------------------------------------------------------------------- class folders


@pytest.fixture(scope="module")
def class_folders(tmp_path_factory):
    """More classes than an 8-bit mask has values; binary RGB masks as in FSS-1000."""
    root = tmp_path_factory.mktemp("folders")
    mask = np.zeros((30, 40, 3), np.uint8)
    mask[5:25, 10:30] = 255
    for c in range(260):
        for i in range(2 if c > 250 else 1):
            path = root / "data" / f"c{c:03}" / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((30, 40, 3), c % 256, np.uint8)).save(path)
            Image.fromarray(mask).save(path.with_suffix(".png"))
    (root / "own.yaml").write_text(
        f"DATA: {{data_set: mine, data_root: {root}/data, min_pixels: 1}}\n"
        f"TRAIN: {{train_h: 33, train_w: 41, val_size: 25, augment: False, exp_root: {root}/exp}}\n"
    )
    return root


def test_class_folders_give_binary_masks_and_large_class_numbers(class_folders):
    cfg = load_config(class_folders / "own.yaml")
    dataset = EpisodeDataset(cfg, build_index(cfg, "train"))
    assert len(dataset.sampler.dropped) == 251 and len(dataset) == 18
    item = dataset[17]
    assert (item["class_id"], item["class_index"]) == (260, 259)
    area = int(item["query_mask"].sum())
    assert item["query_mask"].max() == 1 and abs(area - 22 * 20.5) < 45
    assert item["base_mask"].unique().tolist() == [0, 260]
    assert item["support_masks"].sum() == area  # the same mask in every picture
    stage_1 = SegmentationDataset(cfg, dataset.index)
    assert stage_1[len(stage_1) - 1]["mask"].unique().tolist() == [0, 260]
    picture = PictureDataset(cfg, dataset.index)[0]
    assert picture.target.unique().tolist() == [0, 1]


def test_an_absent_class_of_a_folder_is_nowhere_in_another_folders_picture(class_folders):
    cfg = load_config(class_folders / "own.yaml", ["absent", 0.9])
    dataset = EpisodeDataset(cfg, build_index(cfg, "train"))
    item = next(item for item in dataset if not item["query_mask"].any())
    shown = int(item["files"][0].split("/")[-2][1:])
    assert shown != item["class_index"]
    assert item["base_mask"].unique().tolist() == [0, shown + 1]


# ---------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("stretch", [True, False])
def test_evaluation_pictures(folder, stretch):
    cfg = make(folder, "resized_val", stretch)
    index = build_index(cfg, "val")
    dataset = PictureDataset(cfg, index)
    assert len(dataset) == len(index.pairs)
    for position in index.entries:
        picture = dataset[position]
        image, labels = read_pair(*index.pairs[position])
        assert picture.position == position
        assert picture.image.shape == (3, 49, 49) and picture.image.dtype == torch.uint8
        assert picture.mask.shape == (49, 49) and picture.mask.dtype == torch.uint8
        assert (picture.target.numpy() == labels).all()
        height, width = picture.content
        assert (height, width) == ((49, 49) if stretch else (height, 48)) and height <= 49
        assert (picture.mask[height:] == 255).all() and (picture.mask[:, width:] == 255).all()
        assert not picture.image[:, height:].any() and not picture.image[..., width:].any()
        assert (picture.mask[:height, :width] == 1).any()
