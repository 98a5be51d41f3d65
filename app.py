"""A web page for few-shot segmentation: annotate a few pictures, segment the others.

    pip install -r requirements-app.txt
    python app.py [--config FILE] [--weight FILE] [--port 7860]

Without options it starts with the model that ``make demo`` trained. The page is served on this
machine only (127.0.0.1) and writes nothing outside a temporary folder, of which the oldest files
go beyond 100 MB, and all when it ends.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
import zipfile
from collections.abc import Callable, Collection, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from util.data.transform import read_image
from util.draw.overlays import class_colour, heat_overlay, label_overlay, overlay
from util.draw.panels import fit, grid
from util.predict.predictor import FewShotPredictor
from util.predict.writing import summarise, write_results
from util.runtime.errors import NO_FILES_LEFT, FewShotError, run, too_many_files
from util.runtime.files import expanded, write_json
from util.weights.load import model_of

DEMO_CONFIG = "config/demo/demo_split0_resnet18.yaml"
MAX_FILE = "20mb"
MAX_MEGAPIXELS = 40
MAX_PICTURES = 50
MAX_KEPT = 100_000_000  # bytes of earlier requests in the temporary folder
MIN_FILES = 128  # that a page with a few visitors has open
CANVAS = 768  # longer side of the picture to paint on: the network sees less than that
BRUSH = "#e69f00"
WORK, CACHE = "work-", "cache"  # folders in the temporary one
NO_SUPPORTS = "No supports yet."
INTRO = """# Few-shot segmentation
Show the model what to look for on one or more pictures, then drop in the pictures to segment."""


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


def keep_small(folder: Path, in_use: Collection[Path], limit: int = MAX_KEPT) -> None:
    """Remove the oldest files of earlier requests from ``folder`` until ``limit`` bytes are left.

    gradio keeps every upload and every picture that it showed; a browser has them by then. What is
    in use, and what is being worked on (``WORK``), stays.
    """
    files = []
    for path in folder.rglob("*"):
        inside = path.relative_to(folder).parts[0]
        if inside.startswith(WORK) or inside == CACHE or path in in_use:
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
    """The files among what gradio hands to a handler."""
    if isinstance(values, (list, tuple)):
        return set().union(*map(paths_in, values))
    return {Path(values)} if isinstance(values, str) and os.sep in values else set()


class Session:
    """One visitor's supports; the model is shared by all."""

    def __init__(self, predictor: FewShotPredictor) -> None:
        self.predictor = predictor
        self.gallery: list[tuple[np.ndarray, str]] = []
        self.archive: Path | None = None

    def add(self, editor: dict[str, Any] | None, class_name: str) -> str:
        class_name = class_name.strip() or "object"
        if len(class_name) > 60:
            raise FewShotError("a class name has at most 60 characters")
        if len(self.gallery) >= MAX_PICTURES:
            raise FewShotError(f"there are {MAX_PICTURES} supports already: clear them first")
        image, mask = painted_mask(editor)
        self.predictor.add_support(image, mask, class_name)
        colour = class_colour(self.predictor.classes.index(class_name) + 1)
        self.gallery.append((overlay(image, mask, colour), class_name))
        shots = ", ".join(f"{name} × {count}" for name, count in self.predictor.shots.items())
        return f"Supports: {shots}"

    def overview(self) -> np.ndarray:
        """All supports with their masks as one uint8 RGB picture."""
        rows = [self.gallery[i : i + 5] for i in range(0, len(self.gallery), 5)]
        return grid(rows, "", 160)

    def segment(
        self, paths: Sequence[str], folder: Path, progress: Callable[..., Any]
    ) -> tuple[list[tuple[np.ndarray, str]], list[tuple[np.ndarray, str]], Path, str]:
        """Masks and correlation maps of the pictures, and a ZIP file with all results."""
        if not self.predictor.classes:
            raise FewShotError("add a support first: upload a picture, paint the object, add it")
        if not paths:
            raise FewShotError("drop in the pictures to segment first")
        if len(paths) > MAX_PICTURES:
            raise FewShotError(f"{len(paths)} pictures at once; the limit is {MAX_PICTURES}")
        masks, maps, summaries, refused = [], [], [], []
        with tempfile.TemporaryDirectory(prefix=WORK, dir=folder) as place:
            for number, path in enumerate(progress(list(paths), desc="segmenting"), start=1):
                file = Path(path).name
                try:
                    image = load_picture(path)
                except FewShotError as error:
                    refused.append(str(error))
                    continue
                result = self.predictor.predict(image)
                write_results(Path(place), f"{number:02d}_{Path(path).stem}", image, result)
                summaries.append(summarise(Path(file), result))
                small = fit_canvas(image)
                labels = cv2.resize(
                    result.mask, small.shape[1::-1], interpolation=cv2.INTER_NEAREST
                )
                areas = ", ".join(
                    f"{name} {entry['fraction']:.1%}"
                    for name, entry in summaries[-1]["classes"].items()
                )
                masks.append((label_overlay(small, labels), f"{areas} ({file})"))
                for name, stages in result.correlations.items():
                    for stage, values in enumerate(stages, start=1):
                        heat = heat_overlay(small, values)
                        maps.append((heat, f"stage {stage}, {name} ({file})"))
            if not masks:
                raise FewShotError("; ".join(refused))
            write_json(Path(place) / "summary.json", summaries)
            archive = self._pack(Path(place), folder)
        lines = [f"{len(masks)} of {len(paths)} pictures segmented."]
        lines += [f"Left out: {reason}." for reason in refused]
        return masks, maps, archive, "  \n".join(lines)

    def _pack(self, place: Path, folder: Path) -> Path:
        """The results as a ZIP file in a folder of its own; the visitor's previous one goes."""
        if self.archive is not None:
            shutil.rmtree(self.archive.parent, ignore_errors=True)
        self.archive = Path(tempfile.mkdtemp(dir=folder)) / "results.zip"
        with zipfile.ZipFile(self.archive, "w", zipfile.ZIP_STORED) as file:
            for part in sorted(place.rglob("*")):
                if part.is_file():
                    file.write(part, part.relative_to(place))
        return self.archive


def build_page(gr: Any, new_predictor: Callable[[], FewShotPredictor], folder: Path) -> Any:
    """The page. ``gr`` is the gradio module; ``folder`` takes everything that is written."""

    progress = gr.Progress()

    def session_of(session: Session | None) -> Session:
        return session or Session(new_predictor())

    def explained(handler: Callable[..., Any]) -> Callable[..., Any]:
        """``handler``, whose complaints become a message on the page that changes nothing else."""

        @wraps(handler)
        def wrapper(*values: Any) -> Any:
            keep_small(folder, paths_in(values))
            try:
                return handler(*values)
            except FewShotError as error:
                gr.Warning(str(error), duration=None)
                return gr.skip()

        return wrapper

    @explained
    def show_support(path: str | None) -> Any:
        return None if path is None else fit_canvas(load_picture(path))

    @explained
    def add(editor: dict | None, class_name: str, session: Session | None) -> tuple:
        session = session_of(session)
        message = session.add(editor, class_name)
        return session, session.overview(), message

    def clear() -> tuple:
        return None, None, NO_SUPPORTS

    @explained
    def segment(
        paths: list[str] | None, session: Session | None, progress: Any = progress
    ) -> tuple:
        masks, maps, archive, message = session_of(session).segment(
            paths or [], folder, progress.tqdm
        )
        return masks, maps, gr.DownloadButton(value=str(archive), interactive=True), message

    with gr.Blocks(title="Few-shot segmentation", analytics_enabled=False) as page:
        gr.Markdown(INTRO)
        session = gr.State(None, time_to_live=3600)
        with gr.Row():
            with gr.Column():
                gr.Markdown("## 1. Show what to look for")
                support = gr.File(
                    label="Support picture", file_types=["image"], elem_id="support", height=110
                )
                editor = gr.ImageEditor(
                    label="Paint over the object",
                    type="numpy",
                    image_mode="RGBA",
                    sources=(),
                    transforms=(),
                    brush=gr.Brush(default_size=30, colors=[(BRUSH, 0.6)], color_mode="fixed"),
                    layers=False,
                    placeholder="The support picture appears here, ready to be painted on",
                    elem_id="editor",
                )
                class_name = gr.Textbox("object", label="Class", max_length=60, elem_id="class")
                with gr.Row():
                    add_button = gr.Button("Add support", variant="primary", elem_id="add")
                    clear_button = gr.Button("Clear all supports", elem_id="clear")
                supports = gr.Image(
                    label="Supports", interactive=False, buttons=["fullscreen"], elem_id="supports"
                )
                shots = gr.Markdown(NO_SUPPORTS, elem_id="shots")
            with gr.Column():
                gr.Markdown("## 2. Segment pictures")
                queries = gr.File(
                    label="Pictures to segment",
                    file_count="multiple",
                    file_types=["image"],
                    elem_id="queries",
                    height=110,
                )
                go = gr.Button("Segment", variant="primary", elem_id="segment")
                status = gr.Markdown(elem_id="status")
                masks = gr.Gallery(
                    label="Masks", columns=2, object_fit="contain", height="auto", elem_id="masks"
                )
                maps = gr.Gallery(
                    label="Correlation maps",
                    columns=3,
                    object_fit="contain",
                    height="auto",
                    elem_id="maps",
                )
                download = gr.DownloadButton(
                    "Download results (ZIP)", interactive=False, elem_id="download"
                )
        support.change(show_support, support, editor, api_visibility="private")
        add_button.click(
            add, [editor, class_name, session], [session, supports, shots], api_visibility="private"
        )
        clear_button.click(clear, None, [session, supports, shots], api_visibility="private")
        go.click(
            segment, [queries, session], [masks, maps, download, status], api_visibility="private"
        )
    return page


def gradio_in(folder: Path) -> Any:
    """The gradio module, told before its import to write to ``folder`` and to call nobody."""
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HOME"] = os.environ["MPLCONFIGDIR"] = str(folder / CACHE)
    try:
        import gradio
    except ImportError as error:
        raise FewShotError(
            "the web page needs gradio: pip install -r requirements-app.txt"
        ) from error
    return gradio


def port_number(text: str) -> int:
    """A port as the command line names it."""
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 1 << 16):
        raise FewShotError(f"--port {text}: a port is a number from 1 to 65535")
    return int(text)


def check_machine(port: int) -> None:
    """Raise FewShotError, before a model is loaded, when the page could not be served."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files < MIN_FILES:
        raise FewShotError(f"{too_many_files()}; the page needs {MIN_FILES}")
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    except OSError as error:
        raise FewShotError(
            f"cannot serve on port {port} ({error.strerror}); --port names another"
        ) from error


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=expanded, metavar="FILE", help="YAML configuration")
    parser.add_argument(
        "--weight", type=expanded, metavar="FILE", help="checkpoint; its own configuration serves"
    )
    parser.add_argument("--port", type=port_number, default=7860, help="1 to 65535 (7860)")
    parser.add_argument("--device", help="cpu, cuda, ...; default: a GPU when there is one")
    parser.add_argument(
        "--head",
        choices=("final", "meta"),
        default="final",
        help="meta: without the base learner, which suppresses the classes it was trained on",
    )
    parser.add_argument(
        "--opts", nargs="*", action="extend", default=[], metavar="KEY VALUE", help="settings"
    )
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    check_machine(options.port)
    named = options.config or options.weight
    try:
        cfg, weight = model_of(
            options.config if named else DEMO_CONFIG, options.weight, options.opts
        )
    except FewShotError as error:
        if named:
            raise
        raise FewShotError(
            f"no demo model yet: run 'make demo', or give --weight ({error})"
        ) from error
    folder = Path(tempfile.mkdtemp(prefix="fewshot-app-"))
    # SIGTERM ends it like Ctrl-C, so that the folder goes in every case.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    page = None
    try:
        gradio = gradio_in(folder)
        shared = FewShotPredictor.from_config(cfg, weight, options.device, options.head)
        page = build_page(gradio, shared.without_supports, folder)
        page.launch(
            server_name="127.0.0.1",
            server_port=options.port,
            max_file_size=MAX_FILE,
            share=False,
            ssr_mode=False,
            run_history=False,
            footer_links=["settings"],
            state_session_capacity=100,
        )
    except OSError as error:
        if error.errno in NO_FILES_LEFT:
            raise FewShotError(too_many_files()) from error
        raise FewShotError(f"cannot serve on port {options.port}: {error}") from error
    finally:
        if page is not None:  # a browser may still be uploading into the folder
            page.close(verbose=False)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    run(main)
