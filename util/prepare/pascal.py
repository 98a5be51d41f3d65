"""PASCAL VOC 2012 with the Semantic Boundaries Dataset (SBD): the masks and lists of PASCAL-5i."""

from __future__ import annotations

import zlib
from functools import partial
from pathlib import Path

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from util.data.transform import read_mask
from util.prepare.archives import Download, Source, locate
from util.prepare.steps import (
    Prepared,
    Row,
    claim,
    link_folder,
    mask_is_whole,
    run_all,
    upright,
    write_list,
    write_mask,
)
from util.runtime.errors import FewShotError

CLASSES = 20
BORDER = 255
MASKS = "SegmentationClassAug"  # the name that published list files use
VOC = Source(
    title="PASCAL VOC 2012",
    names=("VOCtrainval_11-May-2012.tar",),
    member=r"(?:.*/)?VOC2012/(?P<path>JPEGImages/[^/.][^/]*\.jpg"
    r"|SegmentationClass/[^/.][^/]*\.png"
    r"|ImageSets/(?:Segmentation|Main)/(?:train|val)\.txt)",
    needed=r"ImageSets/Segmentation/train\.txt",
    folder=".",
    unpacked=(".", "VOC2012", "*/VOC2012", "*/*/VOC2012"),
    marker="ImageSets/Segmentation/train.txt",
    where="get VOCtrainval_11-May-2012.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
    download=Download(
        "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        md5="6cd6e144f989b92b3379bac3b3de84fd",
    ),
)
SBD = Source(
    title="the Semantic Boundaries Dataset (SBD)",
    names=("benchmark.tgz",),
    member=r"(?:.*/)?cls/(?P<path>[^/.][^/]*\.mat)",
    needed=".*",
    folder="sbd/cls",
    unpacked=("sbd/cls", "cls", "*/cls", "*/*/cls"),
    marker="*.mat",
    where="get benchmark.tgz from http://home.bharathh.info/pubs/codes/SBD/download.html",
    download=Download(
        "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/"
        "semantic_contours/benchmark.tgz",
        md5="82b4d87ceb2ed10f6038a1cba92111cb",
    ),
)


def prepare(
    root: Path,
    lists: Path,
    *,
    out: Path | None = None,
    download: bool = False,
    workers: int = 1,
) -> Prepared:
    """Make ``out`` (default: ``root``) a PASCAL data root, and the lists that go with it.

    Training pictures are VOC's segmentation training set and the SBD pictures of VOC's main
    training set; validation pictures are VOC's segmentation validation set. VOC's own mask is
    taken where there is one.

    Args:
        root: holds VOC 2012 and SBD, each a folder or the archive.
        lists: folder for ``train.txt`` and ``val.txt``.
        out: gets ``SegmentationClassAug/`` (uint8 PNG, 0..20, 255 = border) and, where it is not
            VOC's folder, a link to ``JPEGImages``.
        download: fetch the archives that are not there.
        workers: processes.

    Raises:
        FewShotError: something is missing, damaged, or not VOC or SBD.
    """
    out = out or root
    voc = locate(VOC, root, out, download)
    sbd = locate(SBD, root, out, download)
    own_train = _names(voc / "ImageSets" / "Segmentation" / "train.txt")
    val = _names(voc / "ImageSets" / "Segmentation" / "val.txt")
    added = {path.stem for path in sbd.glob("*.mat")}
    added &= set(_names(voc / "ImageSets" / "Main" / "train.txt"))
    # VOC keeps the two sets apart; a picture in both would be trained on and then tested.
    train = sorted((added | set(own_train)) - set(val))

    link_folder(voc / "JPEGImages", out / "JPEGImages")
    claim(out / MASKS, {"made_from": "VOC 2012 and SBD"})
    own = {name: voc / "SegmentationClass" / f"{name}.png" for name in (*own_train, *val)}
    sources = {name: own.get(name, sbd / f"{name}.mat") for name in (*train, *val)}
    todo = [task for task in sources.items() if not mask_is_whole(out / MASKS / f"{task[0]}.png")]
    make = partial(_make_mask, out=out)
    run_all(make, todo, workers, "VOC and SBD masks")
    for split, names in (("train", train), ("val", val)):
        pairs = [(f"JPEGImages/{name}.jpg", f"{MASKS}/{name}.png") for name in names]
        write_list(lists / f"{split}.txt", pairs)
    rows = [
        Row("VOC segmentation train", len(own_train), 1464),
        Row("SBD in VOC main train", len(added), 5623),
        Row("train pairs", len(train), 5953),
        Row("val pairs", len(val), 1449),
    ]
    return Prepared(out, rows)


def read_sbd_mask(path: Path) -> np.ndarray:
    """``GTcls.Segmentation`` of an SBD file, [H, W].

    Raises:
        FewShotError: unreadable, or without that field.
    """
    try:
        content = loadmat(path, variable_names=["GTcls"])
        return np.asarray(content["GTcls"]["Segmentation"][0, 0])
    except (OSError, MatReadError, ValueError, TypeError, KeyError, IndexError) as error:
        raise FewShotError(f"{path} is not an SBD file with GTcls ({error})") from error
    except (zlib.error, EOFError, RuntimeError) as error:
        raise FewShotError(f"{path} is damaged ({error})") from error


def _make_mask(task: tuple[str, Path], out: Path) -> None:
    name, source = task
    mask = (read_sbd_mask if source.suffix == ".mat" else read_mask)(source)
    wrong = np.setdiff1d(mask, [*range(CLASSES + 1), BORDER])
    if wrong.size:
        raise FewShotError(
            f"{source} holds the value {wrong[0]}; classes are 0..{CLASSES}, the border {BORDER}"
        )
    mask = upright(mask.astype(np.uint8), out / "JPEGImages" / f"{name}.jpg")
    write_mask(out / MASKS / f"{name}.png", mask)


def _names(path: Path) -> list[str]:
    """The picture names of a VOC image set: the first word of each line."""
    try:
        names = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise FewShotError(f"{path} cannot be read") from error
    for name in names:
        if Path(name).name != name:
            raise FewShotError(f"{path}: the name {name!r} leaves the picture folder")
    return names
