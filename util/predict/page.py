"""What the web page does for one visitor, without the page: supports, results, files."""

from __future__ import annotations

import contextlib
import html
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import cv2
import numpy as np
from PIL import Image

from util.data.reading import read_mask
from util.data.transform import read_image
from util.draw.overlays import Colour, class_colour, heat_overlay, label_overlay, overlay
from util.predict.predictor import FewShotPredictor
from util.predict.refine import refined
from util.predict.segmented import (
    ARCHIVE,
    DECIDED,
    DECISION,
    FILES,
    Segmented,
    Tile,
    fit_canvas,
    pack,
)
from util.predict.sketch import Sketch
from util.predict.supports import Support, is_annotation, supports_in
from util.predict.threshold import class_scores, labels_at
from util.predict.writing import (
    read_probabilities,
    summarise,
    write_mask,
    write_results,
)
from util.runtime.errors import FewShotError

MAX_MEGAPIXELS = 40
MAX_PICTURES = 50
MAX_KEPT = 100_000_000  # bytes of earlier requests in the temporary folder
WORK, CACHE = "work-", "cache"  # folders in the temporary one
BRUSH = "brush"
HINTS = {
    BRUSH: "Paint over the object.",
    "box": "Click two opposite corners of a box; two more clicks make another one.",
    "polygon": "Click along the outline; the first corner, or Close, ends a polygon.",
    "point": "Click on the object, then on what is missing or what is too much.",
}


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
    for place, inside, names in os.walk(folder):  # folders that another request removes are none
        if Path(place) == folder:
            inside[:] = [name for name in inside if name != CACHE and not name.startswith(WORK)]
        for path in (Path(place, name) for name in names):
            if in_use.isdisjoint((path, *path.parents)):
                with contextlib.suppress(OSError):  # another visitor's request may be removing it
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
        return values.files
    return {Path(values)} if isinstance(values, str) and os.sep in values else set()


# ---------------------------------------------------------------------------------------- results


class Session:
    """One visitor's supports and results; the model is shared by all.

    refine: whether masks get the edges of their pictures (:mod:`util.predict.refine`).
    lock: of the supports and the marks; it is never held for long.
    """

    living: WeakValueDictionary[int, Session] = WeakValueDictionary()

    def __init__(self, predictor: FewShotPredictor, refine: bool = False) -> None:
        self.living[id(self)] = self
        self.lock = threading.RLock()
        self._packing = threading.Lock()  # of the files of the results
        self.predictor = predictor
        self.refine = refine
        self.gallery: list[Tile] = []
        self.pictures: list[str] = []  # uploads to be marked; the first one is shown
        self.sketch: Sketch | None = None
        self.taken: set[str] = set()  # uploads that are supports
        self.uploads: dict[str, Sequence[str]] = {}  # all that the page shows, by its list
        self.shown: list[Segmented] = []
        self.threshold = DECISION  # the latest that was asked for
        self.results: Path | None = None  # the folder of the last results and of their archive

    @classmethod
    def all(cls) -> list[Session | None]:
        """Those that are still somebody's."""
        return [session() for session in cls.living.valuerefs()]

    def __deepcopy__(self, memo: Any) -> Session:
        """A new visitor's: gradio copies the first value of its State for each."""
        return Session(self.predictor.without_supports(), self.refine)

    @property
    def files(self) -> set[Path]:
        """Uploads that may be asked for again, and the folder of the results."""
        paths = {*self.pictures, *(each.path for each in self.shown)}
        paths.update(*list(self.uploads.values()))
        return {*map(Path, paths), *filter(None, [self.results])}

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
        """Add supports that are files, all of them or none."""
        read = [(*support.pixels(), named(support.class_name)) for support in supports]
        before = len(self.gallery)
        try:
            for image, mask, class_name in read:
                self._add(image, mask, class_name)
        except FewShotError:
            while len(self.gallery) > before:
                self.remove_last()
            raise

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
            used = {Path(support.image).name for support in found}
            self.taken |= {p for p in paths if is_annotation(p) or Path(p).name in used}
            return [line.removeprefix(f"{place}: ") for line in left_out]

    def remove_last(self) -> None:
        """Forget the support that was added last."""
        if not self.gallery:
            raise FewShotError("there is no support to remove")
        self.predictor.remove_support(self.gallery.pop()[1])

    def open(self, paths: Sequence[str], tool: str) -> np.ndarray | None:
        """Take pictures to be marked one after the other; returns the first, of ``CANVAS``.

        As long as it is among them, the one that is being marked stays the first, with its marks.
        """
        kept = [path for path in self.pictures if path in paths]
        stays = self.sketch is not None and kept[:1] == self.pictures[:1] != []
        self.pictures = kept + [path for path in paths if path not in kept]
        return self.sketch.image if self.sketch and stays else self.next(tool, 0)

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
        """Segment the pictures with the supports that are there now, and pack all results; returns
        what the page says of it."""
        with self.lock:
            predictor = self.predictor.with_same_supports()
        if not predictor.classes:
            raise FewShotError("add a support first: upload a picture, mark the object, add it")
        if not paths:
            raise FewShotError("drop in the pictures to segment first")
        if len(paths) > MAX_PICTURES:
            raise FewShotError(f"{len(paths)} pictures at once; the limit is {MAX_PICTURES}")
        began = time.perf_counter()
        shown, refused = [], []
        with tempfile.TemporaryDirectory(prefix=WORK, dir=folder) as work:
            place = Path(work) / FILES
            for number, path in enumerate(progress(list(paths), desc="segmenting"), start=1):
                try:
                    image = load_picture(path)
                except FewShotError as error:
                    refused.append(str(error))
                    continue
                name = f"{number:02d}_{Path(path).stem}"
                result = predictor.predict(image)
                result = result._replace(mask=self._edges(image, result.mask))
                write_results(place, name, image, result)
                shown.append(Segmented.of(path, name, image, result))
            if not shown:
                raise FewShotError("; ".join(refused))
            shutil.copytree(place / "labels", Path(work) / DECIDED)
            pack(Path(work), [each.summary for each in shown])
            with self._packing:
                before, self.results = self.results, Path(tempfile.mkdtemp(dir=folder))
                for part in Path(work).iterdir():
                    part.rename(self.results / part.name)
                self.shown, self.threshold = shown, DECISION
            if before is not None:
                shutil.rmtree(before, ignore_errors=True)
        seconds = time.perf_counter() - began
        lines = [
            f"{len(shown)} of {len(paths)} pictures segmented in {seconds:.1f} s, "
            f"{seconds / len(paths):.1f} s each."
        ]
        lines += [f"Left out: {reason}." for reason in refused]
        return "  \n".join(lines)

    def masks(self, threshold: float = DECISION) -> list[Tile]:
        """Each picture with its masks, and beside it what the threshold is compared with: how sure
        the surest class is."""
        self.threshold, tiles = threshold, []
        for each in self.shown:
            labels, surest = each.labels, each.scores.max(0)
            if threshold != DECISION:
                labels = labels_at(each.scores, threshold, each.result.not_found)
                labels = self._edges(each.small, labels)
            tiles.append((label_overlay(each.small, labels), each.caption(labels)))
            span = f"{surest.min():.2f}–{surest.max():.2f} probability"
            tiles.append((heat_overlay(each.small, surest), span))
        return tiles

    def maps(self) -> list[Tile]:
        """The correlation maps of all pictures."""
        return [tile for each in self.shown for tile in each.maps]

    def repack(self, threshold: float) -> bool:
        """Write the files of the results anew with masks at ``threshold``, and pack them; False as
        soon as it is no longer the latest.

        Raises:
            FewShotError: there are none, or an upload is no longer there.
        """
        with self._packing:
            place, summaries = self.archive.parent, []
            for each in self.shown:
                if threshold != self.threshold:
                    return False
                image = load_picture(each.path)
                summary, result = each.summary, each.result
                if threshold == DECISION:
                    result = result._replace(mask=read_mask(place / DECIDED / f"{each.name}.png"))
                else:
                    probabilities = read_probabilities(place / FILES, each.name, result)
                    mask = labels_at(class_scores(probabilities), threshold, result.not_found)
                    mask = self._edges(image, mask)
                    result = result._replace(mask=mask, probabilities=probabilities)
                    summary = {**summarise(Path(summary["file"]), result), "threshold": threshold}
                write_mask(place / FILES, each.name, image, result)
                summaries.append(summary)
            pack(place, summaries)
            return threshold == self.threshold

    def _edges(self, image: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return refined(image, labels) if self.refine else labels

    @property
    def archive(self) -> Path:
        """The ZIP file of the last results; FewShotError where there are none."""
        if self.results is None:
            raise FewShotError("segment pictures first")
        return self.results / ARCHIVE

    def close(self) -> None:
        """Forget the results."""
        with self._packing:
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
