"""What the web page does for one visitor, without the page: supports, results, files."""

from __future__ import annotations

import contextlib
import html
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from util.data.transform import read_image
from util.draw.overlays import Colour, class_colour, heat_overlay, label_overlay, overlay
from util.draw.panels import fit
from util.predict.predictor import FewShotPredictor, Prediction
from util.predict.refine import refined
from util.predict.sketch import Sketch
from util.predict.supports import Support, is_annotation, supports_in
from util.predict.threshold import class_scores, labels_at
from util.predict.writing import (
    read_probabilities,
    summarise,
    without_arrays,
    write_mask,
    write_results,
)
from util.runtime.errors import FewShotError
from util.runtime.files import write_json

MAX_MEGAPIXELS = 40
MAX_PICTURES = 50
MAX_KEPT = 100_000_000  # bytes of earlier requests in the temporary folder
CANVAS = 768  # longer side of the picture to mark: the network sees less than that
WORK, CACHE = "work-", "cache"  # folders in the temporary one
FILES = "files"  # in the folder of one visitor's results
BRUSH = "brush"
HINTS = {
    BRUSH: "Paint over the object.",
    "box": "Click two opposite corners of a box; two more clicks make another one.",
    "polygon": "Click along the outline; the first corner, or Close, ends a polygon.",
    "point": "Click on the object, then on what is missing or what is too much.",
}
Tile = tuple[np.ndarray, str]
"""A picture, uint8 RGB [H, W, 3], and its caption."""


def load_picture(path: str) -> np.ndarray:
    """An uploaded picture as uint8 RGB [H, W, 3], EXIF rotation applied.

    Raises:
        FewShotError: not a picture, damaged, or over ``MAX_MEGAPIXELS`` (seen in its header, so
            that nothing huge is ever decoded).
    """
    name = Path(path).name
    if not Path(path).is_file():
        raise FewShotError(f"{name} is no longer here: drop it in again")
    try:
        with Image.open(path) as header:
            width, height = header.size
    except (OSError, SyntaxError, ValueError) as error:
        raise FewShotError(f"{name} is not a picture that can be read") from error
    except Image.DecompressionBombError as error:
        raise FewShotError(f"{name} is over the limit of {MAX_MEGAPIXELS} megapixels") from error
    if width * height > MAX_MEGAPIXELS * 1_000_000:
        raise FewShotError(
            f"{name} has {width * height / 1e6:.0f} megapixels; the limit is {MAX_MEGAPIXELS}"
        )
    return read_image(path)


def fit_canvas(image: np.ndarray) -> np.ndarray:
    """``image`` shrunk until its longer side is at most ``CANVAS`` pixels."""
    return image if max(image.shape[:2]) <= CANVAS else fit(image, CANVAS)


def painted_mask(editor: dict[str, Any] | None) -> tuple[np.ndarray, np.ndarray]:
    """What the brush left on the canvas: (picture uint8 RGB [H, W, 3], mask uint8 {0, 1} [H, W]).

    Raises:
        FewShotError: no picture yet, or nothing painted.
    """
    if not editor or editor.get("background") is None:
        raise FewShotError("upload a support picture first")
    image = np.ascontiguousarray(editor["background"][..., :3])
    mask = np.zeros(image.shape[:2], bool)
    for layer in editor["layers"]:
        if layer.shape[:2] == mask.shape and layer.shape[2] == 4:
            mask |= layer[..., 3] > 60  # the brush is half transparent
    if not mask.any():
        raise FewShotError("nothing is painted: draw over the object with the brush")
    return image, mask.astype(np.uint8)


# ------------------------------------------------------------------------------------------ files


def keep_small(folder: Path, in_use: set[Path], limit: int = MAX_KEPT) -> None:
    """Remove the oldest files of earlier requests from ``folder`` until ``limit`` bytes are left.

    gradio keeps every upload and every picture that it showed; a browser has them by then. What is
    in use, and what is being worked on (``WORK``), stays.
    """
    files = []
    for path in folder.rglob("*"):
        inside = path.relative_to(folder).parts[0]
        if (
            inside.startswith(WORK)
            or inside == CACHE
            or not in_use.isdisjoint((path, *path.parents))
        ):
            continue
        with contextlib.suppress(OSError):  # another visitor's request may be removing it
            if path.is_file():
                files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
    kept = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if kept <= limit:
            return
        kept -= size
        with contextlib.suppress(OSError):
            path.unlink()
            path.parent.rmdir()  # fails as long as something else is in it


def paths_in(values: Any) -> set[Path]:
    """The files and folders among what gradio hands to a handler."""
    if isinstance(values, (list, tuple)):
        return set().union(*map(paths_in, values))
    if isinstance(values, Session):
        return {*map(Path, values.pictures), *filter(None, [values.results])}
    return {Path(values)} if isinstance(values, str) and os.sep in values else set()


# ---------------------------------------------------------------------------------------- results


class Segmented(NamedTuple):
    """What is kept of one picture while the page shows it.

    path: the upload. name: of its results. result: the prediction without its large arrays.
    small: the picture, uint8 RGB [h, w, 3] of at most ``CANVAS`` pixels a side.
    labels: at 0.5, uint8 [h, w]. scores: float16 [C, h, w], see ``threshold``.
    maps: the correlation maps.
    """

    path: str
    name: str
    result: Prediction
    small: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    maps: list[Tile]

    @classmethod
    def of(cls, path: str, name: str, image: np.ndarray, result: Prediction) -> Segmented:
        small = fit_canvas(image)
        size = small.shape[1::-1]
        labels = cv2.resize(result.mask, size, interpolation=cv2.INTER_NEAREST)
        planes = [cv2.resize(plane, size) for plane in result.probabilities]
        maps = [
            (heat_overlay(small, values), f"{class_name} · stage {stage} ({Path(path).name})")
            for class_name, stages in result.correlations.items()
            for stage, values in enumerate(stages, start=1)
        ]
        scores = class_scores(np.stack(planes)).astype(np.float16)
        return cls(path, name, without_arrays(result), small, labels, scores, maps)

    def at(self, threshold: float | None) -> np.ndarray:
        """The labels at a threshold; None is the model's own decision."""
        return (
            self.labels
            if threshold is None
            else labels_at(self.scores, threshold, self.result.not_found)
        )

    def caption(self, labels: np.ndarray) -> str:
        """Class and share first: there is little room on a telephone."""
        shares = (
            f"{name} · {self._share(name, np.count_nonzero(labels == number) / labels.size)}"
            for number, name in enumerate(self.result.classes, start=1)
        )
        return f"{', '.join(shares)} ({Path(self.path).name})"

    def _share(self, name: str, share: float) -> str:
        if name in self.result.absent:
            return f"not found ({100 * self.result.presence[name]:.0f} % likely)"
        return _percent(share)


class Session:
    """One visitor's supports and results; the model is shared by all.

    refine: whether masks get the edges of their pictures (:mod:`util.predict.refine`).
    """

    def __init__(self, predictor: FewShotPredictor, refine: bool = False) -> None:
        self.predictor = predictor
        self.refine = refine
        self.gallery: list[Tile] = []
        self.pictures: list[str] = []  # uploads to be marked; the first one is shown
        self.sketch: Sketch | None = None
        self.shown: list[Segmented] = []
        self.results: Path | None = None  # the folder of the last results and of their archive

    # ------------------------------------------------------------------------------ supports

    def colour(self, class_name: str) -> Colour:
        """Of a class that is there, or of the one that would come next."""
        names = [*self.predictor.classes, named(class_name)]
        return class_colour(names.index(named(class_name)) + 1)

    def add(self, editor: dict[str, Any] | None, class_name: str) -> None:
        """Add what the brush painted or, where no editor is given, what the clicks enclose."""
        if editor is not None:
            image, mask = painted_mask(editor)
        elif self.sketch is None:
            raise FewShotError("upload a support picture first")
        else:
            image, mask = self.sketch.image, self.sketch.mask
            if not mask.any():
                raise FewShotError(f"nothing is marked. {HINTS[self.sketch.tool]}")
        self._add(image, mask, named(class_name))

    def _add(self, image: np.ndarray, mask: np.ndarray, class_name: str) -> None:
        if len(self.gallery) >= MAX_PICTURES:
            raise FewShotError(f"there are {MAX_PICTURES} supports already: clear them first")
        self.predictor.add_support(image, mask, class_name)
        small = fit_canvas(image)
        marked = cv2.resize(mask, small.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        self.gallery.append((overlay(small, marked, self.colour(class_name)), class_name))

    def take(self, supports: Sequence[Support]) -> None:
        """Add supports that are files; all are read before the first one is added."""
        read = [(*support.pixels(), named(support.class_name)) for support in supports]
        for image, mask, class_name in read:
            self._add(image, mask, class_name)

    def take_files(self, paths: Sequence[str], folder: Path) -> list[str]:
        """Add what annotation files among uploads say of the pictures among them.

        Returns sentences on what was left out.
        """
        with tempfile.TemporaryDirectory(prefix=WORK, dir=folder) as place:
            for path in paths:  # each lies in a folder of its own
                if not is_annotation(path):
                    load_picture(path)
                if (Path(place) / Path(path).name).exists():
                    raise FewShotError(f"two uploads are called {Path(path).name}: rename one")
                shutil.copy(path, place)
            try:
                found, left_out = supports_in(Path(place))
                self.take(found)
            except FewShotError as error:  # of the place where they lie only the names are known
                raise FewShotError(str(error).replace(f"{place}/", "")) from error
            return [line.removeprefix(f"{place}: ") for line in left_out]

    def remove_last(self) -> None:
        """Forget the support that was added last."""
        if not self.gallery:
            raise FewShotError("there is no support to remove")
        self.predictor.remove_support(self.gallery.pop()[1])

    def open(self, paths: Sequence[str], tool: str) -> np.ndarray | None:
        """Take pictures to be marked one after the other; returns the first, of ``CANVAS``."""
        self.pictures = list(paths)
        return self.next(tool, 0)

    def next(self, tool: str, step: int = 1) -> np.ndarray | None:
        """The next picture to be marked, the first one after the last; None: there is none."""
        self.pictures = self.pictures[step:] + self.pictures[:step]
        picture = fit_canvas(load_picture(self.pictures[0])) if self.pictures else None
        self.sketch = None if picture is None else Sketch(picture, tool)
        return picture

    def clear(self) -> None:
        """Forget every support."""
        self.predictor.reset()
        self.gallery.clear()

    # ------------------------------------------------------------------------------- results

    def segment(self, paths: Sequence[str], folder: Path, progress: Callable[..., Any]) -> str:
        """Segment the pictures and pack all results; returns what the page says of it."""
        if not self.predictor.classes:
            raise FewShotError("add a support first: upload a picture, mark the object, add it")
        if not paths:
            raise FewShotError("drop in the pictures to segment first")
        if len(paths) > MAX_PICTURES:
            raise FewShotError(f"{len(paths)} pictures at once; the limit is {MAX_PICTURES}")
        began = time.perf_counter()
        shown, summaries, refused = [], [], []
        with tempfile.TemporaryDirectory(prefix=WORK, dir=folder) as work:
            place = Path(work) / FILES
            for number, path in enumerate(progress(list(paths), desc="segmenting"), start=1):
                try:
                    image = load_picture(path)
                except FewShotError as error:
                    refused.append(str(error))
                    continue
                name = f"{number:02d}_{Path(path).stem}"
                result = self.predictor.predict(image)
                result = result._replace(mask=self._edges(image, result.mask))
                write_results(place, name, image, result)
                summaries.append(summarise(Path(Path(path).name), result))
                shown.append(Segmented.of(path, name, image, result))
            if not shown:
                raise FewShotError("; ".join(refused))
            self.close()
            self.shown, self.results = shown, Path(tempfile.mkdtemp(dir=folder))
            place.rename(self.results / FILES)
        self._pack(summaries)
        seconds = time.perf_counter() - began
        lines = [
            f"{len(shown)} of {len(paths)} pictures segmented in {seconds:.1f} s, "
            f"{seconds / len(paths):.1f} s each."
        ]
        lines += [f"Left out: {reason}." for reason in refused]
        return "  \n".join(lines)

    def masks(self, threshold: float | None = None) -> list[Tile]:
        """Each picture with its masks, and beside it what the threshold is compared with: how sure
        the surest class is; None is the model's own decision."""
        tiles = []
        for each in self.shown:
            labels, surest = each.at(threshold), each.scores.max(0)
            if threshold is not None:
                labels = self._edges(each.small, labels)
            tiles.append((label_overlay(each.small, labels), each.caption(labels)))
            span = f"{surest.min():.2f}–{surest.max():.2f} probability"
            tiles.append((heat_overlay(each.small, surest), span))
        return tiles

    def maps(self) -> list[Tile]:
        """The correlation maps of all pictures."""
        return [tile for each in self.shown for tile in each.maps]

    def repack(self, threshold: float) -> Path:
        """Write the files of the results anew with masks at ``threshold``, and pack them.

        Raises:
            FewShotError: there are none, or an upload is no longer there.
        """
        files, summaries = self.archive.parent / FILES, []
        for each in self.shown:
            image = load_picture(each.path)
            probabilities = read_probabilities(files, each.name, each.result)
            scores = class_scores(probabilities)
            mask = self._edges(image, labels_at(scores, threshold, each.result.not_found))
            result = each.result._replace(mask=mask, probabilities=probabilities)
            write_mask(files, each.name, image, result)
            summaries.append(summarise(Path(Path(each.path).name), result))
        return self._pack([{**summary, "threshold": threshold} for summary in summaries])

    def _edges(self, image: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return refined(image, labels) if self.refine else labels

    def _pack(self, summaries: list[dict[str, Any]]) -> Path:
        """The results as a ZIP file beside them."""
        files = self.archive.parent / FILES
        write_json(files / "summary.json", summaries)
        with zipfile.ZipFile(self.archive, "w", zipfile.ZIP_STORED) as archive:
            for part in sorted(files.rglob("*")):
                if part.is_file():
                    archive.write(part, part.relative_to(files))
        return self.archive

    @property
    def archive(self) -> Path:
        """The ZIP file of the last results; FewShotError where there are none."""
        if self.results is None:
            raise FewShotError("segment pictures first")
        return self.results / "results.zip"

    def close(self) -> None:
        """Forget the results."""
        if self.results is not None:
            shutil.rmtree(self.results, ignore_errors=True)
        self.shown, self.results = [], None


def named(class_name: str) -> str:
    """A class name as typed; nothing is 'object'."""
    class_name = class_name.strip() or "object"
    if len(class_name) > 60:
        raise FewShotError("a class name has at most 60 characters")
    return class_name


def legend(classes: Mapping[str, Any] | Sequence[str]) -> str:
    """The classes in their colours, as HTML; where they have numbers, with these."""
    counts = classes if isinstance(classes, Mapping) else {}
    return "".join(
        f'<span style="white-space: nowrap; margin-right: 1em"><span style="color: '
        f'rgb{class_colour(number)}">■</span> {html.escape(name)}'
        f"{f' × {counts[name]}' if counts else ''}</span>"
        for number, name in enumerate(classes, start=1)
    )


def _percent(share: float) -> str:
    """Whole per cents, but a class that is there is never 0 %."""
    return "< 1 %" if 0 < share < 0.005 else f"{share * 100:.0f} %"
