"""COCO 2014: masks and lists from the pictures and the instances JSON.

Two kinds of masks: ``benchmark`` repeats the masks behind the published COCO-20i numbers, which
lose every polygon of an object but the first; ``full`` draws the objects whole.
"""

from __future__ import annotations

from array import array
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from util.config.folders import named
from util.data.coco import CocoFile, Key, without_specks
from util.data.shapes import filled, outlines, run_length_mask
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
from util.runtime.errors import FewShotError

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
    """One object: class index 1..80, COCO ``segmentation`` (polygons or RLE), crowd or not, id."""

    label: int
    shape: Any
    crowd: bool
    id: Any = None


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
        bare = sum(not without_specks(each.shape) for p in pictures for each in p.objects)
        if bare:
            rows.append(Row(f"{split} objects without an outline, left out", bare))
    first, second = categories.values()
    if first != second:
        raise FewShotError(" and ".join(map(str, categories)) + " do not have the same categories")
    return Prepared(out, [*rows, Row("classes", len(first), 80)])


def read_instances(path: Path) -> tuple[list[Picture], list[tuple[Key, str]]]:
    """Read an instances JSON: the pictures with a non-crowd object, sorted by name, and the
    (id, name) of its categories.

    Classes are numbered 1..80 in the order of the category ids, whatever gaps those have.

    Raises:
        FewShotError: not a readable instances JSON, or two pictures would share a mask.
    """
    content = CocoFile(path)
    if content.astray:
        raise FewShotError(f"{path}: {named(content.astray, 'annotation')} of no picture it lists")
    names = list(content.categories.values())
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise FewShotError(f"{path} lists several categories '{twice}'")
    categories = sorted(content.categories.items(), key=lambda item: (str(type(item[0])), item))
    labels = {key: label for label, (key, _) in enumerate(categories, start=1)}
    pictures: dict[str, Picture] = {}
    for listed in content.pictures:
        objects = [
            Annotation(labels.get(found.category, 0), found.shape, found.crowd, found.id)
            for found in content.objects[listed.id]
        ]
        if all(found.crowd for found in objects):
            continue
        for found in objects:
            if not found.label or found.shape is None:
                lacks = "segmentation" if found.label else "category that the file lists"
                raise FewShotError(
                    f"{path} is not a COCO instances file (captions or keypoints, perhaps?): "
                    f"annotation {found.id!s:.40} on {listed.name} has no {lacks}"
                )
        if Path(listed.name).name != listed.name:
            raise FewShotError(f"{path}: the file name {listed.name!r} leaves the picture folder")
        if listed.frame is None:
            raise FewShotError(f"{path}: {listed.name} has no width and height")
        picture = Picture(listed.name, *listed.frame, objects)
        other = pictures.setdefault(Path(listed.name).stem, picture)
        if other is not picture:
            raise FewShotError(f"{path} lists {other.name} and {picture.name}: they share a mask")
    if not any(_encloses(found.shape) for each in pictures.values() for found in each.objects):
        boxes = " by outlines in pixels, but by boxes alone or in fractions" if pictures else ""
        raise FewShotError(f"{path} annotates no picture{boxes}")
    if len(categories) > 254:
        raise FewShotError(f"{path} has {len(categories)} categories; a mask holds at most 254")
    return sorted(pictures.values(), key=lambda picture: picture.name), categories


def _encloses(shape: Any) -> bool:
    """Whether a ``segmentation`` shows more than a box, or a polygon in fractions of the picture,
    would leave of it: the corner pixel at most."""
    outline = without_specks(shape)
    return bool(outline) and not (
        isinstance(outline, list)
        and all(isinstance(polygon, array) and max(polygon) < 1.5 for polygon in outline)
    )


def draw(picture: Picture, rule: str) -> np.ndarray:
    """The class-index mask of a picture, uint8 [H, W], 0 = background; later objects on top.

    ``benchmark``: of each non-crowd object the first polygon, its coordinates cut to integers.
    ``full``: every polygon and RLE; crowds are drawn first, so that they never hide an object
    that was annotated on its own.

    Raises:
        FewShotError: an annotation cannot be drawn, by its id.
    """
    mask = np.zeros((picture.height, picture.width), np.uint8)
    objects = picture.objects
    if rule == "full":
        objects = sorted(objects, key=lambda found: not found.crowd)
    for found in objects:
        if found.crowd and rule != "full":
            continue
        try:
            _draw_object(mask, found, rule)
        except FewShotError as error:
            raise FewShotError(
                f"{picture.name}: its annotation cannot be drawn (id {found.id!s:.40}: {error})"
            ) from error
    return mask


def _draw_object(mask: np.ndarray, found: Annotation, rule: str) -> None:
    if isinstance(found.shape, dict):  # crowds; in the official files nothing else
        mask[run_length_mask(found.shape, mask.shape) == 1] = found.label
    elif rule == "benchmark" and found.shape:
        points = outlines(found.shape[:1], mask.shape, least=1)
        cv2.fillPoly(mask, [points[0].astype(np.int32)], found.label)
    elif polygons := without_specks(found.shape):
        mask[filled(mask.shape, outlines(polygons, mask.shape)) == 1] = found.label


def _make_mask(picture: Picture, images: Path, masks: Path, rule: str) -> None:
    mask = draw(picture, rule)
    write_mask(_mask_path(masks, picture), upright(mask, images / picture.name))


def _mask_path(folder: Path, picture: Picture) -> Path:
    return folder / f"{Path(picture.name).stem}.png"
