"""COCO 2014: masks and lists from the pictures and the instances JSON.

Two kinds of masks: ``benchmark`` repeats the masks behind the published COCO-20i numbers, which
lose every polygon of an object but the first; ``full`` draws the objects whole.
"""

from __future__ import annotations

import json
from array import array
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from pycocotools import mask as rle

from util.errors import FewShotError
from util.prepare.archives import Download, Source, locate
from util.prepare.steps import (
    Prepared,
    Row,
    claim,
    file_sha1,
    link_folder,
    mask_is_whole,
    run_all,
    upright,
    write_list,
    write_mask,
)

SPLITS = {"train": ("train2014", 82081), "val": ("val2014", 40137)}
MASK_RULES = ("benchmark", "full")
ADDRESS = "http://images.cocodataset.org/"
WHERE = "get it from https://cocodataset.org/#download"
PICTURES = {
    name: Source(
        title=f"COCO {name} pictures",
        names=(f"{name}.zip",),
        member=rf"(?:.*/)?{name}/(?P<path>[^/.][^/]*\.jpg)",
        needed=".*",
        folder=name,
        unpacked=(name, f"*/{name}"),
        marker="*.jpg",
        where=WHERE,
        download=Download(f"{ADDRESS}zips/{name}.zip"),
    )
    for name, _ in SPLITS.values()
}
ANNOTATIONS = Source(
    title="COCO 2014 annotations",
    names=("annotations_trainval2014.zip",),
    member=r"(?:.*/)?(?P<path>instances_(train|val)2014\.json)",
    needed=r"instances_train2014\.json",
    folder="annotations",
    unpacked=("annotations", ".", "*/annotations"),
    marker="instances_train2014.json",
    where=WHERE,
    download=Download(f"{ADDRESS}annotations/annotations_trainval2014.zip"),
)


class Annotation(NamedTuple):
    """One object: class index 1..80, COCO ``segmentation`` (polygons or RLE), crowd or not."""

    label: int
    shape: Any
    crowd: bool


class Picture(NamedTuple):
    """One picture to annotate: file name, size, and its objects in file order."""

    name: str
    height: int
    width: int
    objects: list[Annotation]


def prepare(
    root: Path,
    lists: Path,
    *,
    out: Path | None = None,
    masks: str = "benchmark",
    download: bool = False,
    workers: int = 1,
) -> Prepared:
    """Make ``out`` (default: ``root``) a COCO data root, and the lists that go with it.

    Args:
        root: holds ``train2014``, ``val2014`` and ``annotations``, each a folder or the archive.
        lists: folder for ``train.txt`` and ``val.txt``.
        out: gets masks below ``annotations/train2014|val2014`` (uint8 PNG, class index 0..80)
            and, where it is not ``root``, links to the picture folders.
        masks: ``benchmark`` or ``full``.
        download: fetch the archives that are not there.
        workers: processes.

    Raises:
        FewShotError: something is missing, damaged, or not COCO.
    """
    if masks not in MASK_RULES:
        raise FewShotError(f"--masks {masks}: expected one of {', '.join(MASK_RULES)}")
    out = out or root
    annotations = locate(ANNOTATIONS, root, out, download)
    rows, categories = [], {}
    for split, (name, known) in SPLITS.items():
        link_folder(locate(PICTURES[name], root, out, download), out / name)
        source = annotations / f"instances_{name}.json"
        pictures, categories[source] = read_instances(source)
        folder = out / "annotations" / name
        claim(folder, {"masks": masks, "instances_sha1": file_sha1(source)})
        make = partial(_make_mask, images=out / name, masks=folder, rule=masks)
        tasks = [p for p in pictures if not mask_is_whole(_mask_path(folder, p))]
        run_all(make, tasks, workers, f"{name}: masks ({masks})")
        pairs = [
            (f"{name}/{p.name}", f"annotations/{name}/{Path(p.name).stem}.png") for p in pictures
        ]
        write_list(lists / f"{split}.txt", pairs)
        rows.append(Row(f"{split} pairs", len(pairs), known))
    first, second = categories.values()
    if first != second:
        raise FewShotError(" and ".join(map(str, categories)) + " do not have the same categories")
    return Prepared(out, [*rows, Row("classes", len(first), 80)])


def read_instances(path: Path) -> tuple[list[Picture], list[tuple[int, str]]]:
    """Read an instances JSON: the pictures with a non-crowd object, sorted by name, and the
    (id, name) of its categories.

    Classes are numbered 1..80 in the order of the category ids, whatever gaps those have.

    Raises:
        FewShotError: not a readable instances JSON.
    """
    try:
        content = json.loads(path.read_bytes(), object_hook=_compact)
    except (OSError, ValueError, TypeError) as error:
        raise FewShotError(f"{path} cannot be read as JSON ({error})") from error
    try:
        categories = sorted((c["id"], c["name"]) for c in content["categories"])
        labels = {number: label for label, (number, _) in enumerate(categories, start=1)}
        objects = defaultdict(list)
        for a in content["annotations"]:
            crowd = bool(a.get("iscrowd", 0))
            found = Annotation(labels[a["category_id"]], a["segmentation"], crowd)
            objects[a["image_id"]].append(found)
        pictures = [
            Picture(i["file_name"], i["height"], i["width"], objects[i["id"]])
            for i in content["images"]
            if any(not found.crowd for found in objects[i["id"]])
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise FewShotError(
            f"{path} is not a COCO instances file (captions or keypoints, perhaps?): "
            f"{type(error).__name__} {error}"
        ) from error
    for picture in pictures:
        if Path(picture.name).name != picture.name:
            raise FewShotError(f"{path}: the file name {picture.name!r} leaves the picture folder")
    if not pictures:
        raise FewShotError(f"{path} annotates no picture")
    if len(categories) > 254:
        raise FewShotError(f"{path} has {len(categories)} categories; a mask holds at most 254")
    return sorted(pictures, key=lambda picture: picture.name), categories


def _compact(found: dict[str, Any]) -> dict[str, Any]:
    """Polygons as arrays while the file is parsed: the official file takes a quarter of the
    memory that lists of Python numbers would."""
    if isinstance(found.get("segmentation"), list):
        found["segmentation"] = [array("d", polygon) for polygon in found["segmentation"]]
    return found


def draw(picture: Picture, rule: str) -> np.ndarray:
    """The class-index mask of a picture, uint8 [H, W], 0 = background; later objects on top.

    ``benchmark``: of each non-crowd object the first polygon, its coordinates cut to integers.
    ``full``: every polygon and RLE; crowds are drawn first, so that they never hide an object
    that was annotated on its own.
    """
    mask = np.zeros((picture.height, picture.width), np.uint8)
    if rule == "full":
        for found in sorted(picture.objects, key=lambda found: not found.crowd):
            mask[_whole_object(found.shape, *mask.shape)] = found.label
        return mask
    for found in picture.objects:
        if found.crowd:
            continue
        if isinstance(found.shape, dict):  # not in the official files; it has no polygon to cut
            mask[_whole_object(found.shape, *mask.shape)] = found.label
        elif found.shape:
            points = np.asarray(found.shape[0]).reshape(-1, 2).astype(np.int32)
            cv2.fillPoly(mask, [points], found.label)
    return mask


def _whole_object(shape: Any, height: int, width: int) -> np.ndarray:
    """A COCO ``segmentation`` as bool [H, W]."""
    if isinstance(shape, list):
        # Fewer than three points enclose nothing, and four numbers would be taken for a box.
        polygons = [list(polygon) for polygon in shape if len(polygon) >= 6]
        if not polygons:
            return np.zeros((height, width), bool)
        coded = rle.merge(rle.frPyObjects(polygons, height, width))
    elif isinstance(shape["counts"], list):
        coded = rle.frPyObjects(shape, height, width)
    else:
        coded = shape
    return rle.decode(coded).astype(bool)


def _make_mask(picture: Picture, images: Path, masks: Path, rule: str) -> None:
    try:
        mask = draw(picture, rule)
    except (ValueError, TypeError, KeyError, cv2.error) as error:
        raise FewShotError(f"{picture.name}: its annotation cannot be drawn ({error})") from error
    write_mask(_mask_path(masks, picture), upright(mask, images / picture.name))


def _mask_path(folder: Path, picture: Picture) -> Path:
    return folder / f"{Path(picture.name).stem}.png"
