"""FSS-1000: one folder per class with ``N.jpg`` and its binary mask ``N.png``.

The class folders are the data set: no list is needed, and the classes of each part come from the
configuration (``DATA.split_lists``, or a seeded split that is named as such in the results).
"""

from __future__ import annotations

from pathlib import Path

from util.config.folds import FSS_MARKER, FSS_PLACES
from util.data.reading import read_pair
from util.prepare.archives import Source, locate
from util.prepare.steps import Prepared, Row, link_folder, run_all

FSS = Source(
    title="FSS-1000",
    names=("fewshot_data.zip", "FSS-1000.zip", "fewshot_data.tar.gz"),
    member=r"(?:(?!__MACOSX).*/)?(?P<path>[^/.][^/]*/\d+\.(?:jpg|png))",
    needed=r".*/1\.jpg",
    folder=".",
    unpacked=FSS_PLACES,
    marker=FSS_MARKER,
    where="get it by the link on https://github.com/HKUSTCV/FSS-1000",
)


def prepare(
    root: Path,
    lists: Path,
    *,
    out: Path | None = None,
    download: bool = False,
    workers: int = 1,
) -> Prepared:
    """Unpack FSS-1000 where need be, and see that each picture has a mask of one object.

    Args:
        root: holds the class folders, up to two folders deep, or the archive.
        lists: not used; class folders need no list.
        out: gets the class folders, unpacked from the archive or as links; None: they stay where
            they are, and an archive is unpacked beside itself.
        download: FSS-1000 has no address to fetch from; says where to get it.
        workers: processes.

    Raises:
        FewShotError: something is missing, damaged, or not FSS-1000.
    """
    found = locate(FSS, root, out or root, download)
    classes = [folder for folder in sorted(found.iterdir()) if (folder / "1.jpg").is_file()]
    pictures = [path for folder in classes for path in sorted(folder.glob("*.jpg"))]
    run_all(_check, pictures, workers, "FSS-1000 masks")
    if out is not None:
        for folder in classes:
            link_folder(folder, out / folder.name)
    rows = [Row("classes", len(classes), 1000), Row("pictures", len(pictures), 10000)]
    return Prepared(out or found, rows)


def _check(picture: Path) -> None:
    read_pair(picture, picture.with_suffix(".png"), binary=True)
