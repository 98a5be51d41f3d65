"""A web page for few-shot segmentation: mark an object on a few pictures, segment the others.

    pip install -r requirements-app.txt
    python app.py [--config FILE] [--weight FILE] [--presence P] [--port 7860]

Without options it starts with the model for photographs that ships with the project. The page is
served on this machine only (127.0.0.1) and writes nothing outside a temporary folder, of which the
oldest files go beyond 100 MB, and all when it ends.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any

from util.predict.arguments import add_model_arguments
from util.predict.examples import package_examples
from util.predict.page import (
    BRUSH,
    CACHE,
    DECISION,
    HINTS,
    Session,
    fit_canvas,
    keep_small,
    legend,
    load_picture,
    paths_in,
)
from util.predict.predictor import FewShotPredictor
from util.predict.serving import check_machine, gradio_in, port_number
from util.predict.sketch import Sketch
from util.predict.supports import JSON, is_annotation
from util.runtime.errors import NO_FILES_LEFT, FewShotError, run, too_many_files
from util.runtime.files import expanded
from util.weights.load import is_shipped, knows_shapes_only, model_for_pictures

__all__ = ["fit_canvas", "load_picture"]  # scripts of users take them from here
Visitor = Session | None
Paths = list[str] | None
MAX_FILE = "20mb"
PAINT = "#e69f00"
NO_SUPPORTS = "No supports yet."
FORGOTTEN = "this page was idle for too long: add the supports again"
INTRO = """# Few-shot segmentation
Show the model what to look for on one or more pictures, then drop in the pictures to segment."""
UPLOADS: dict[str, Any] = {"file_count": "multiple", "height": 140}
# Nothing is shared with other sites.
GALLERY: dict[str, Any] = {"object_fit": "contain", "buttons": ["download", "fullscreen"]}
SHOW_RESULTS = """() => {
    const status = document.querySelector('#status');
    if (status.getBoundingClientRect().top > innerHeight / 2) status.scrollIntoView();
}"""
PLACEHOLDER = """<div style="border: 2px dashed #8888; border-radius: 8px; padding: 3em 1em;
text-align: center">Masks and probability maps appear here</div>"""


def build_page(
    gr: Any, new_predictor: Callable[[], FewShotPredictor], folder: Path, refine: bool = False
) -> Any:
    """The page. ``gr`` is the gradio module; ``folder`` takes everything that is written;
    refine: whether masks get the edges of their pictures."""

    progress = gr.Progress()
    examples = package_examples()

    def session_of(session: Visitor, shots: str = NO_SUPPORTS) -> Session:
        """``shots``: the supports that the page shows."""
        session = session or Session(new_predictor(), refine)
        if not session.gallery and shots != NO_SUPPORTS:
            raise FewShotError(FORGOTTEN)
        return session

    def explained(handler: Callable[..., Any], alone: bool = True) -> Callable[..., Any]:
        """``handler``, whose complaints become a message on the page that changes nothing else.

        alone: it is short, and no other such one of its visitor runs meanwhile.
        """

        @wraps(handler)
        def wrapper(*values: Any) -> Any:
            keep_small(folder, paths_in((values, Session.all())))
            locks = [each.lock for each in values if alone and isinstance(each, Session)]
            try:
                with locks[0] if locks else contextlib.nullcontext():
                    return handler(*values)
            except FewShotError as error:
                gr.Warning(str(error), duration=None)
                return gr.skip()

        return wrapper

    longer = partial(explained, alone=False)

    # ----------------------------------------------------------------------------- marking

    def sketched(session: Session, class_name: str) -> Any:
        sketch = session.sketch
        return None if sketch is None else sketch.drawn(session.colour(class_name))

    def opened(session: Session, picture: Any, class_name: str) -> tuple:
        several = gr.Button(visible=len(session.pictures) > 1)
        return session, picture, sketched(session, class_name), several

    @explained
    def show_support(paths: Paths, tool: str, class_name: str, session: Visitor) -> tuple:
        session, paths = session_of(session), paths or []
        session.uploads["supports"] = paths
        session.taken.intersection_update(paths)
        new = [path for path in paths if path not in session.taken]
        if any(map(is_annotation, new)):
            for line in session.take_files(new, folder):
                gr.Info(line, duration=None)
        before = session.sketch
        picture = session.open([path for path in new if path not in session.taken], tool)
        views = opened(session, picture, class_name)
        if session.sketch is before:  # with its marks
            views = (session, gr.skip(), gr.skip(), views[-1])
        return *views, *shown_supports(session)

    @explained
    def show_next(tool: str, class_name: str, session: Visitor) -> tuple:
        session = session_of(session)
        return opened(session, session.next(tool), class_name)

    @explained
    def choose(tool: str, class_name: str, session: Visitor) -> tuple:
        session = session_of(session)
        if session.sketch is not None:
            session.sketch = Sketch(session.sketch.image, tool)
        return (
            session,
            gr.Radio(info=HINTS[tool]),
            gr.Column(visible=tool == BRUSH),
            gr.Column(visible=tool != BRUSH),
            sketched(session, class_name),
            gr.Button(visible=tool == "polygon"),
        )

    @explained
    def click(class_name: str, session: Visitor, event: Any) -> Any:
        if session is None or session.sketch is None:
            raise FewShotError("upload a support picture first")
        session.sketch.click(*event.index)
        return sketched(session, class_name)

    click.__annotations__ = {"event": gr.SelectData}  # gradio hands it over by its type

    def changed(change: Callable[[Sketch], None]) -> Callable[..., Any]:
        @explained
        def handler(class_name: str, session: Visitor) -> Any:
            if session is None or session.sketch is None:
                return None
            change(session.sketch)
            return sketched(session, class_name)

        return handler

    # ---------------------------------------------------------------------------- supports

    def shown_supports(session: Session) -> tuple:
        return session.gallery, legend(session.predictor.shots) or NO_SUPPORTS

    @explained
    def add(editor: dict | None, tool: str, name: str, session: Visitor, shots: str) -> tuple:
        session = session_of(session)
        if not session.gallery and shots != NO_SUPPORTS:
            gr.Warning(FORGOTTEN, duration=None)
        session.add((editor or {}) if tool == BRUSH else None, name)
        # Ready for another object on the same picture.
        session.sketch = session.sketch and Sketch(session.sketch.image, tool)
        picture = session.sketch and session.sketch.image
        return session, picture, picture, *shown_supports(session)

    @explained
    def remove(session: Visitor, shots: str) -> tuple:
        session = session_of(session, shots)
        session.remove_last()
        return session, *shown_supports(session)

    @explained
    def clear(session: Visitor) -> tuple:
        session = session_of(session)
        session.clear()
        return session, *shown_supports(session)

    # ----------------------------------------------------------------------------- results

    def shown_results(session: Session) -> tuple:
        return (
            gr.HTML(visible=False),
            gr.Slider(value=DECISION, visible=True),
            gr.HTML(legend(session.shown[0].result.classes), visible=True),
            gr.Gallery(session.masks(), visible=True),
            session.maps(),
            gr.DownloadButton(value=str(session.archive), interactive=True),
        )

    @longer
    def segment(paths: Paths, session: Visitor, shots: str, progress: Any = progress) -> tuple:
        session = session_of(session, shots)
        session.uploads["queries"] = paths or []
        message = session.segment(paths or [], folder, progress.tqdm)
        return session, message, *shown_results(session)

    @longer
    def example(session: Visitor, progress: Any = progress) -> tuple:
        session = session_of(session)
        with session.lock:
            session.clear()
            session.take(examples.supports)
        place = folder / CACHE / "example"
        place.mkdir(parents=True, exist_ok=True)
        paths = [str(shutil.copy(query, place)) for query in examples.queries]
        message = session.segment(paths, folder, progress.tqdm)
        with session.lock:
            return *shown_supports(session), paths, session, message, *shown_results(session)

    @longer
    def move(threshold: float, session: Visitor) -> tuple:
        session = session_of(session)
        if not session.shown:
            raise FewShotError(FORGOTTEN)
        return session.masks(threshold), gr.DownloadButton(interactive=False)

    @longer
    def repack(threshold: float, paths: Paths, session: Visitor) -> Any:
        if not session or not session.shown or not session.repack(threshold):
            return gr.skip()
        return gr.DownloadButton(value=str(session.archive), interactive=True)

    @explained
    def keep(paths: Paths, session: Session) -> Session:
        session.uploads["queries"] = paths or []
        return session

    with gr.Blocks(title="Few-shot segmentation", analytics_enabled=False) as page:
        gr.Markdown(INTRO)
        session = gr.State(
            Session(new_predictor(), refine), time_to_live=3600, delete_callback=Session.close
        )
        with gr.Row():
            with gr.Column():
                gr.Markdown("## 1. Show what to look for")
                example_button = gr.Button(
                    "Try it: cheetahs and lions", visible=examples is not None, elem_id="example"
                )
                support = gr.File(
                    label="Support pictures, or pictures with the JSON of labelme or COCO",
                    file_types=["image", JSON],
                    elem_id="support",
                    **UPLOADS,
                )
                next_button = gr.Button("Next picture", visible=False, elem_id="next")
                tool = gr.Radio(
                    list(HINTS),
                    value=BRUSH,
                    label="Mark it with",
                    info=HINTS[BRUSH],
                    elem_id="tool",
                )
                with gr.Column(visible=True) as brush:
                    editor = gr.ImageEditor(
                        label="Paint over the object",
                        type="numpy",
                        image_mode="RGBA",
                        sources=(),
                        transforms=(),
                        brush=gr.Brush(default_size=30, colors=[(PAINT, 0.6)], color_mode="fixed"),
                        layers=False,
                        placeholder="The support picture appears here, ready to be painted on",
                        elem_id="editor",
                    )
                with gr.Column(visible=False) as clicks:
                    sketch = gr.Image(
                        label="Click on the picture",
                        interactive=False,
                        buttons=[],
                        elem_id="sketch",
                    )
                    with gr.Row():
                        undo_button = gr.Button("Undo", elem_id="undo", min_width=80)
                        close_button = gr.Button("Close", elem_id="close", min_width=80)
                class_name = gr.Textbox("object", label="Class", max_length=60, elem_id="class")
                add_button = gr.Button("Add support", variant="primary", elem_id="add")
                with gr.Row():
                    remove_button = gr.Button("Remove last", elem_id="remove", min_width=80)
                    clear_button = gr.Button("Clear all", elem_id="clear", min_width=80)
                shots = gr.HTML(NO_SUPPORTS, elem_id="shots")
                supports = gr.Gallery(
                    label="Supports",
                    columns=3,
                    fit_columns=False,
                    height=220,
                    interactive=False,
                    elem_id="supports",
                    **GALLERY,
                )
            with gr.Column():
                gr.Markdown("## 2. Segment pictures")
                queries = gr.File(
                    label="Pictures to segment", file_types=["image"], elem_id="queries", **UPLOADS
                )
                go = gr.Button("Segment", variant="primary", elem_id="segment")
                status = gr.Markdown(elem_id="status")
                download = gr.DownloadButton(
                    "Download results (ZIP)", interactive=False, elem_id="download"
                )
                empty = gr.HTML(PLACEHOLDER, elem_id="empty")
                found = gr.HTML(visible=False, elem_id="found")
                threshold = gr.Slider(
                    0.05,
                    0.95,
                    DECISION,
                    step=0.01,
                    label="Threshold",
                    info="0.5 is the model's own decision; masks and ZIP follow",
                    visible=False,
                    elem_id="threshold",
                )
                masks = gr.Gallery(
                    label="Masks and probabilities",
                    columns=2,
                    height="auto",
                    visible=False,
                    elem_id="masks",
                    **GALLERY,
                )
                with gr.Accordion("How it was found: correlation maps", open=False, elem_id="how"):
                    maps = gr.Gallery(
                        label="Correlation maps",
                        columns=3,
                        height="auto",
                        elem_id="maps",
                        **GALLERY,
                    )

        def on(event: Callable[..., Any], *how: Any, **more: Any) -> Any:
            return event(*how, api_visibility="private", **more)

        marked = [class_name, session]
        added = [supports, shots]
        results = [empty, threshold, found, masks, maps, download]
        views = [session, editor, sketch, next_button]
        on(support.change, show_support, [support, tool, *marked], [*views, *added])
        on(next_button.click, show_next, [tool, *marked], views)
        on(
            tool.change,
            choose,
            [tool, *marked],
            [session, tool, brush, clicks, sketch, close_button],
        )
        on(sketch.select, click, marked, sketch)
        on(undo_button.click, changed(Sketch.undo), marked, sketch)
        on(close_button.click, changed(Sketch.close), marked, sketch)
        on(add_button.click, add, [editor, tool, *marked, shots], [session, editor, sketch, *added])
        on(remove_button.click, remove, [session, shots], [session, *added])
        on(clear_button.click, clear, session, [session, *added])
        shown = [session, status, *results]
        runs = [
            on(go.click, segment, [queries, session, shots], shown),
            on(example_button.click, example, session, [*added, queries, *shown]),
        ]
        for each in runs:  # on a telephone the results are far below
            each.then(None, js=SHOW_RESULTS)
        on(queries.change, keep, [queries, session], session)
        last = {"trigger_mode": "always_last"}
        moved = on(threshold.release, move, [threshold, session], [masks, download], **last)
        on(moved.then, repack, [threshold, queries, session], download, **last)
    return page


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=expanded, metavar="FILE", help="YAML configuration")
    parser.add_argument(
        "--weight", type=expanded, metavar="FILE", help="checkpoint; its own configuration serves"
    )
    parser.add_argument("--port", type=port_number, default=7860, help="1 to 65535 (7860)")
    add_model_arguments(parser)
    return parser.parse_args(arguments)


def serve(page: Any, port: int) -> None:
    """Until it is stopped; FewShotError where the port cannot be had."""
    try:
        page.launch(
            server_name="127.0.0.1",
            server_port=port,
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
        raise FewShotError(f"cannot serve on port {port}: {error}") from error


def main() -> None:
    options = parse()
    check_machine(options.port)
    cfg, weight, head = model_for_pictures(
        options.config, options.weight, options.head, options.opts
    )
    if note := knows_shapes_only(cfg):
        print(note, file=sys.stderr)
    folder = Path(tempfile.mkdtemp(prefix="fewshot-app-"))
    # SIGTERM ends it like Ctrl-C, so that the folder goes in every case.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    page = None
    try:
        gradio = gradio_in(folder)
        shared = FewShotPredictor.from_config(cfg, weight, options.device, head, options.presence)
        refine = is_shipped(weight) if options.refine is None else options.refine
        page = build_page(gradio, shared.without_supports, folder, refine)
        serve(page, options.port)
    finally:
        if page is not None:  # a browser may still be uploading into the folder
            page.close(verbose=False)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    run(main)
