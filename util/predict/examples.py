"""An example on photographs that Python packages carry, with polygons of the project's own."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from util.data.coco import CocoFile
from util.predict.supports import Support

ANNOTATIONS = Path(__file__).resolve().parents[2] / "assets" / "examples.json"


class Examples(NamedTuple):
    """Annotated pictures, and pictures to look for their classes on."""

    supports: list[Support]
    queries: list[Path]


def package_examples() -> Examples | None:
    """The example, or None where a package that it takes pictures from is not installed.

    ``assets/examples.json`` is a COCO file whose names begin with a package; its pictures without
    an object are the queries.
    """
    annotations = CocoFile(ANNOTATIONS)
    supports, queries = [], []
    for listed in annotations.pictures:
        package, _, name = listed.name.partition("/")
        found = find_spec(package)
        if found is None or found.origin is None:
            return None
        picture = Path(found.origin).parent / name
        if not picture.is_file():
            return None
        names = annotations.classes_on(picture)
        supports += [Support(picture, str(ANNOTATIONS), name) for name in names]
        queries += [] if names else [picture]
    return Examples(supports, queries)
