"""Tiny PASCAL, COCO and FSS-1000 trees and archives in the official layouts."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

HEIGHT, WIDTH = 40, 60
PALETTE = [value for index in range(256) for value in (index, 255 - index, index * 7 % 256)]


def write_jpeg(path: Path, size=(HEIGHT, WIDTH), grey=False, orientation=None) -> None:
    """A picture of stored ``size``; ``orientation``: its EXIF tag."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).integers(0, 255, (*size, 3), np.uint8)
    image = Image.fromarray(noise).convert("L" if grey else "RGB")
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    image.save(path, exif=exif)


def write_palette(path: Path, mask: np.ndarray) -> None:
    """A mask as VOC stores it: a palette PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask.astype(np.uint8)).convert("L")
    image = image.copy()
    image.putpalette(PALETTE)
    image.save(path)


def blob(label: int, size=(HEIGHT, WIDTH)) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    mask[5:30, 8:40] = label
    mask[4, 8:40] = 255
    return mask


def box(x: float, y: float, width: float, height: float) -> list[float]:
    """A rectangle as a COCO polygon."""
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def runs(mask: np.ndarray) -> list[int]:
    """A mask as the counts of an uncompressed COCO RLE (column by column, background first)."""
    flat = np.asarray(mask, bool).ravel(order="F")
    edges = np.flatnonzero(np.diff(np.r_[False, flat, False]))
    return np.diff(np.r_[0, edges, flat.size]).tolist()


def instances(split: str, objects: dict[str, list[dict]], sizes=None) -> dict:
    """An instances JSON for ``split``; objects by stem, categories with gaps in their ids."""
    stems = list(objects)
    sizes = sizes or {}
    images = [
        {
            "id": 100 + i,
            "file_name": f"COCO_{split}2014_{stem}.jpg",
            "height": sizes.get(stem, (HEIGHT, WIDTH))[0],
            "width": sizes.get(stem, (HEIGHT, WIDTH))[1],
        }
        for i, stem in enumerate(stems)
    ]
    found = [
        {"id": 1000 + len(stems) * k + i, "image_id": 100 + i, "iscrowd": 0, **annotation}
        for i, stem in enumerate(stems)
        for k, annotation in enumerate(objects[stem])
    ]
    names = {2: "bicycle", 90: "toothbrush", 1: "person"}
    categories = [{"id": number, "name": name} for number, name in names.items()]
    return {"images": images, "annotations": found, "categories": categories}


def coco_tree(root: Path, more_val: dict[str, list[dict]] | None = None) -> Path:
    """Four training pictures (grey, lying, multi-polygon, crowd only) and two for validation.

    more_val: objects of further validation pictures by stem; those in 1 are grey, in 4 lying.
    """
    crowd = np.zeros((HEIGHT, WIDTH), bool)
    crowd[0:20, 0:20] = True
    rle = {"counts": runs(crowd), "size": [HEIGHT, WIDTH]}
    train = {
        "000000000003": [
            {"category_id": 2, "segmentation": [box(2, 3, 20, 10), box(40, 20, 9, 9)]},
            {"category_id": 90, "segmentation": [box(10.9, 5.9, 8, 20)]},
            {"category_id": 1, "segmentation": rle, "iscrowd": 1},
        ],
        "000000000001": [{"category_id": 1, "segmentation": [box(5, 5, 30, 20)]}],
        "000000000002": [{"category_id": 1, "segmentation": rle, "iscrowd": 1}],
        "000000000004": [{"category_id": 1, "segmentation": [box(10, 0, 20, 30)]}],
    }
    val = {
        "000000000007": [{"category_id": 90, "segmentation": [box(1, 1, 40, 30)]}],
        "000000000005": [{"category_id": 2, "segmentation": [box(1, 1, 40, 30)]}],
        **(more_val or {}),
    }
    for split, objects in (("train", train), ("val", val)):
        for stem in objects:
            path = root / f"{split}2014" / f"COCO_{split}2014_{stem}.jpg"
            # Picture 4 lies on its side: stored as every other, shown upright.
            write_jpeg(path, grey=stem.endswith("1"), orientation=6 if stem.endswith("4") else None)
        path = root / "annotations" / f"instances_{split}2014.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(instances(split, objects)))
    return root


def coco_archives(tree: Path, root: Path) -> Path:
    """The three official COCO 2014 zips, made from a tree."""
    root.mkdir(parents=True, exist_ok=True)
    for name in ("train2014", "val2014"):
        zip_folder(tree / name, root / f"{name}.zip", name)
    zip_folder(tree / "annotations", root / "annotations_trainval2014.zip", "annotations")
    return root


def zip_folder(folder: Path, archive: Path, prefix: str) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(folder.rglob("*")):
            packed.write(path, f"{prefix}/{path.relative_to(folder).as_posix()}")


def tar_folder(folder: Path, archive: Path, prefix: str) -> None:
    with tarfile.open(archive, "w:gz" if archive.suffix == ".tgz" else "w") as packed:
        packed.add(folder, prefix)


def tar_with(archive: Path, path: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> None:
    """A tar of one member, whatever its path."""
    with tarfile.open(archive, "w") as packed:
        member = tarfile.TarInfo(path)
        member.type, member.size, member.linkname = kind, len(content), "/etc/hostname"
        packed.addfile(member, io.BytesIO(content))


# VOC: two pictures of the segmentation training set (the second also in SBD), one validation
# picture; SBD: two more, of which one belongs to VOC's main training set.
VOC_TRAIN = {"2007_000032": 1, "2008_000002": 15}
VOC_VAL = {"2007_000033": 20}
SBD_ONLY = {"2008_000008": 13, "2009_000009": 9}


def pascal_trees(root: Path, val: dict[str, int] = VOC_VAL) -> tuple[Path, Path]:
    """(VOC2012 folder, SBD's dataset folder); ``val``: class of each validation picture."""
    voc, sbd = root / "VOCdevkit" / "VOC2012", root / "benchmark_RELEASE" / "dataset"
    for i, name in enumerate((*VOC_TRAIN, *val, *SBD_ONLY)):
        write_jpeg(voc / "JPEGImages" / f"{name}.jpg", grey=i == 1)
    for name, label in (VOC_TRAIN | val).items():
        write_palette(voc / "SegmentationClass" / f"{name}.png", blob(label))
    sets = {
        "Segmentation/train": VOC_TRAIN,
        "Segmentation/val": val,
        "Main/train": [*VOC_TRAIN, "2008_000008"],
        "Main/val": [*val, "2009_000009"],
    }
    for name, names in sets.items():
        path = voc / "ImageSets" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{each}\n" for each in names))
    for name, label in {**SBD_ONLY, "2008_000002": 3}.items():
        write_sbd(sbd / "cls" / f"{name}.mat", blob(label) % 255)
    return voc, sbd


def write_sbd(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {"Segmentation": mask, "Boundaries": np.zeros((20, 1)), "CategoriesPresent": [1]}
    savemat(path, {"GTcls": fields}, do_compression=True)


def pascal_archives(trees: tuple[Path, Path], root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    tar_folder(trees[0], root / "VOCtrainval_11-May-2012.tar", "VOCdevkit/VOC2012")
    tar_folder(trees[1], root / "benchmark.tgz", "benchmark_RELEASE/dataset")
    return root


def fss_tree(root: Path, classes: int = 4, pictures: int = 2) -> Path:
    for name in [f"class_{i}" for i in range(classes)]:
        for number in range(1, pictures + 1):
            write_jpeg(root / name / f"{number}.jpg")
            mask = np.repeat((blob(255) > 0).astype(np.uint8)[..., None] * 255, 3, axis=2)
            Image.fromarray(mask).save(root / name / f"{number}.png")
    return root
