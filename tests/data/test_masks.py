"""A mask means what was drawn, whoever saved it and whoever reads it, or it is refused by name."""

from __future__ import annotations

from functools import partial

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data.mask_kinds import (
    BLACK,
    BORDER,
    KINDS,
    UNDO,
    VOC,
    WHITE,
    bordered,
    coloured,
    grey,
    orientation,
    palette,
    ring,
    soft,
)
from util.data.held import object_in, pixels_of
from util.data.index import Pair
from util.data.masks import binary_mask
from util.data.reading import fit_pair, read_image, read_mask, read_pair
from util.lists import check_pair
from util.prepare import fss, pascal
from util.runtime.errors import FewShotError

SUFFIXES = {"png", "tif", "bmp", "gif", "jpg", "webp"}
CLASSES = range(21)


def scene(height: int, width: int) -> np.ndarray:
    """An object that no turn and no mirror maps on itself, bool [H, W]."""
    m = np.zeros((height, width), bool)
    m[4:13, 6:20] = m[13:18, 6:11] = True
    return m


def save(picture, path, number: int, exact: bool) -> None:
    """Save a picture whose upright pixels are given, with its EXIF tag."""
    if isinstance(picture, bytes):
        if number > 1 or path.suffix != ".png":
            assume(False)
        path.write_bytes(picture)
        return
    if number > 1:
        turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[number]  # Image.Transpose that undoes it
        info = picture.info
        picture = picture.transpose(Image.Transpose(turn))
        picture.info = info
    options = {"exif": orientation(number)} if number > 1 else {}
    try:
        if exact and path.suffix == ".webp":
            options["lossless"] = True
        picture.save(path, quality=80, **options)
    except (OSError, ValueError, KeyError):
        assume(False)  # the format has no such mode
    if path.suffix in (".gif", ".bmp") and picture.mode not in ("P", "L", "1"):
        with Image.open(path) as image:  # what was drawn may not be in the file
            assume(image.convert("RGBA") == picture.convert("RGBA"))
    if number > 1:  # not every format keeps the tag
        with Image.open(path) as image:
            assume(image.getexif().get(0x0112) == number)


def outcome(read):
    try:
        return read()
    except FewShotError as error:
        return error


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    suffix=st.sampled_from(sorted(SUFFIXES)) | st.just("png"),
    size=st.sampled_from([(30, 30), (24, 36), (36, 24)]),
    number=st.integers(1, 8),
    tags=st.sampled_from(["both", "picture", "picture, mask as stored", "mask"]),
    exact=st.booleans(),
)
def test_the_object_read_is_the_object_drawn_or_a_sentence(
    tmp_path_factory, kind, suffix, size, number, tags, exact
):
    folder = tmp_path_factory.getbasetemp() / "masks"
    (folder / "JPEGImages").mkdir(parents=True, exist_ok=True)
    picture, mask = folder / "1.png", folder / f"m.{suffix}"
    drawn = scene(*size)
    make, class_id = KINDS[kind]
    assume(suffix != "gif" or kind != "black at 0 and 3")  # Pillow sorts palettes of GIF files
    if suffix in ("jpg", "webp"):  # dark labels inside a white border are gone in its noise
        assume(not (kind.startswith("grey") and kind.endswith("255") and class_id in CLASSES))
    if tags == "picture, mask as stored":  # told by the size alone
        assume(number > 4 and size[0] != size[1])
        on_mask = np.ascontiguousarray(UNDO[number](drawn))
    else:
        on_mask = drawn
    save(make(on_mask), mask, 1 if tags.startswith("picture") else number, exact)
    save(coloured(drawn, WHITE), picture, 1 if tags == "mask" else number, True)

    def compare(pixels, labels):
        """The object lies on the picture's; a border is ignored and nothing else is."""
        there = pixels[..., 0] > 128
        edge = ring(there)
        assert (labels == 1)[~edge].tolist() == there[~edge].tolist()
        assert ((labels == 255) <= edge).all() and (labels == 1).any()

    # A class folder, and a support: the same object or two refusals.
    counts, problems = check_pair(Pair(picture, mask), True, range(2))
    refused = bool(problems)
    support = outcome(
        lambda: fit_pair(
            partial(pixels_of, picture), partial(object_in, mask, None, f"mask {mask}"), "", ""
        )
    )
    if refused:
        assert [path for path, _ in problems] == [str(mask)] and not counts
        assert isinstance(support, FewShotError) and str(mask) in str(support)
    else:
        compare(*support)
        pair = read_pair(picture, mask, binary=True)
        assert all((one == other).all() for one, other in zip(pair, support, strict=True))
    if suffix == "png":  # as FSS-1000 names them
        beside = folder / "1.jpg"
        save(coloured(drawn, WHITE), beside, 1 if tags == "mask" else number, True)
        (folder / "1.png").write_bytes(mask.read_bytes())
        prepared = outcome(lambda: fss._check(beside))
        assert (prepared is None) == (not refused or problems[0][1] == "no object in the mask")
        save(coloured(drawn, WHITE), picture, 1 if tags == "mask" else number, True)

    # As a labelled mask: the class that was drawn, or a sentence.
    counts, problems = check_pair(Pair(picture, mask), False, CLASSES)
    assert len(problems) == (not counts) and all(str(mask) in path for path, _ in problems)
    if not problems:
        labels = read_pair(picture, mask)[1]
        values = set(np.unique(labels)) - {0, 255}
        assert len(values) == 1 and class_id in (None, *values)
        compare(read_pair(picture, mask)[0], np.where(labels == min(values), 1, labels & 128))
        beside = folder / "JPEGImages" / "1.jpg"
        save(coloured(drawn, WHITE), beside, 1 if tags == "mask" else number, True)
        pascal._make_mask(("1", mask), folder)
        made = read_pair(beside, folder / pascal.MASKS / "1.png")[1]
        assert (made == labels if tags != "picture, mask as stored" else made.any()).all()


# ---------------------------------------------------------------------- what must not be refused


@pytest.mark.parametrize(
    "kind",
    [
        "1 bit", "grey 1", "grey 2", "grey 100", "grey 255", "grey 1 and 255", "soft edges",
        "JPEG noise in a PNG", "near black and near white", "black at 0 and 3",
        "palette, black first", "palette, white first", "Pillow's quantize", "Pillow's adaptive",
        "palette, soft edges", "VOC 7", "VOC 7 and 255", "VOC, sorted", "VOC in colour",
        "16 bits, 1", "16 bits, white", "4 bits, 1", "4 bits, white", "LA, opaque", "LA, cut out",
        "LA, black cut out", "RGBA, soft edges", "red", "maroon", "blue", "nearly black",
        "white of 255 on black", "red of 128 on nothing", "white of 255 on its clear self",
        "red of 255 on clear white", "red and border", "grey 7, transparent ground",
    ],
)  # fmt: skip
def test_object_masks_that_are_clear_are_read(tmp_path, kind):
    drawn = scene(24, 36)
    save(KINDS[kind][0](drawn), tmp_path / "m.png", 1, True)
    found = read_mask(tmp_path / "m.png", binary=True)
    assert found.dtype == np.uint8 and ((found == 1) == drawn)[found != 255].all()
    edge = ring(drawn)
    assert (found == 255).sum() == (edge.sum() if "255" in kind[-3:] and "and" in kind else
                                    edge.sum() if kind in ("VOC, sorted", "VOC in colour",
                                                           "red and border") else 0)  # fmt: skip


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m: Image.fromarray(bordered(m, 7)), r"several labels \(0, 7, 255\)"),
        (
            lambda m: Image.fromarray((m * 3 + np.roll(m, 4, 0) * 2).astype(np.uint8)),
            "several labels",
        ),
        (lambda m: Image.fromarray((m * 90 + np.roll(m, 4, 0) * 100).astype(np.uint8)), "several"),
        (
            lambda m: Image.fromarray(
                np.where(m, 255, np.where(np.roll(m, 9, 0), 120, 0)).astype(np.uint8)
            ),
            r"several labels \(0, 120, 255\)",
        ),
        (
            lambda m: palette(np.where(m, 1, np.roll(m, 14, 0) * 2), [BLACK, VOC[1], VOC[2]]),
            r"colour picture with 2 colours besides black \(\(0, 128, 0\), \(128, 0, 0\)\)",
        ),
        (lambda m: coloured(m, (255, 0, 0), WHITE), "colour picture"),
        (lambda m: coloured(m, (0, 0, 0, 255), (255, 255, 255, 0)), "transparency"),
        (lambda m: coloured(m, (0, 0, 0, 255), (9, 200, 7, 0)), "transparency"),
        (lambda m: Image.fromarray(m.astype(np.float32)), "more than 8 bits"),
    ],
)
def test_object_masks_that_could_mean_two_things_are_refused(tmp_path, make, words):
    path = tmp_path / "m.tif"
    make(scene(30, 30)).save(path)
    with pytest.raises(FewShotError, match=f"m.tif: the mask .*{words}"):
        read_mask(path, binary=True)


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("sorted.png", KINDS["palette, white first"][0], "order is not that of class ids"),
        ("sorted.png", KINDS["VOC, sorted"][0], "order is not that of class ids"),
        ("sorted.png", KINDS["palette of greys, sorted"][0], "order is not that of class ids"),
        ("all.png", lambda m: palette(m & False, [WHITE, BLACK]), "order is not that of class ids"),
        ("m.jpg", grey, "JPEG picture"),
        ("m.png", KINDS["LA, cut out"][0], "LA picture"),
        ("m.png", KINDS["4 bits, 7"][0], "4-bit grey"),
    ],
)
def test_labelled_masks_whose_values_are_no_certain_ids_are_refused(tmp_path, name, make, words):
    save(make(scene(24, 36)), tmp_path / name, 1, True)
    with pytest.raises(FewShotError, match=f"{name}: .*{words}"):
        read_mask(tmp_path / name)


def test_a_label_is_taken_by_its_value_whatever_the_palette(tmp_path):
    drawn = scene(24, 36)
    palette(~drawn, [WHITE, BLACK]).save(tmp_path / "m.png")
    assert (read_mask(tmp_path / "m.png", label=0) == drawn).all()
    Image.fromarray(bordered(drawn, 7)).save(tmp_path / "m.png")
    found = read_mask(tmp_path / "m.png", label=7)
    assert (found == np.where(ring(drawn), 255, drawn)).all()


def test_several_pictures_in_one_file_are_no_mask(tmp_path):
    pages = [grey(scene(24, 36)), grey(~scene(24, 36))]
    pages[0].save(tmp_path / "m.tif", save_all=True, append_images=pages[1:])
    for binary in (False, True):
        with pytest.raises(FewShotError, match="m.tif: holds 2 pictures"):
            read_mask(tmp_path / "m.tif", binary)


@pytest.mark.parametrize("suffix", ["tif", "gif", "webp"])
def test_several_pages_or_frames_are_no_picture(tmp_path, suffix):
    pages = [grey(scene(24, 36)), grey(~scene(24, 36))]
    path = tmp_path / f"p.{suffix}"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    with pytest.raises(FewShotError, match=f"p.{suffix}: holds 2 pictures; a picture to segment"):
        read_image(path)
    pages[0].save(path)
    assert read_image(path).shape == (24, 36, 3)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_of_16_bits_are_refused_in_colour_too(tmp_path, suffix, channels):
    """12 bits in 16, as cameras save them, would be read as almost black."""
    path = str(tmp_path / f"p.{suffix}")
    cv2.imwrite(path, np.full((24, 36, channels), 4000, np.uint16))
    with pytest.raises(FewShotError, match=f"p.{suffix}: the picture has more than 8 bits"):
        read_image(path)


def test_an_array_means_what_the_file_means(tmp_path):
    read = 0
    for make, _ in KINDS.values():
        image = make(scene(24, 36))
        if not isinstance(image, Image.Image) or image.mode not in ("1", "L", "I;16", "I"):
            continue
        if "transparency" in image.info:
            continue
        image.save(tmp_path / "m.tif")
        file = outcome(lambda: read_mask(tmp_path / "m.tif", binary=True))
        array = outcome(lambda image=image: binary_mask(np.array(image)))
        if isinstance(file, FewShotError):
            assert str(array) in str(file)[str(file).index("the mask") :]
        else:
            assert (array == file).all()
            read += 1
    assert read > 10


def test_soft_edges_are_split_in_the_middle():
    drawn = scene(24, 36)
    values = np.array(soft(drawn))
    assert len(np.unique(values)) > 4
    assert (binary_mask(values) == (values >= 128)).all()
    large = np.kron(drawn, np.ones((9, 9), bool))
    wide = cv2.GaussianBlur(large * np.uint8(255), (0, 0), 5)  # a feathered edge
    assert (binary_mask(wide) == (wide >= 128)).all()
    blurred = cv2.GaussianBlur(drawn * np.uint8(255), (0, 0), 40)
    with pytest.raises(FewShotError, match="several labels"):
        binary_mask(blurred)


def test_both_turned_and_the_sizes_open(tmp_path):
    """Each file lies on its side and they fit either way round but not as shown."""
    exif = orientation(6)
    coloured(scene(24, 36), WHITE).save(tmp_path / "a.png", exif=exif)
    grey(scene(36, 24)).save(tmp_path / "m.png", exif=exif)
    with pytest.raises(FewShotError, match="a.png is 24x36 pixels.*m.png is 36x24"):
        read_pair(tmp_path / "a.png", tmp_path / "m.png", binary=True)


def test_the_border_colour_alone_is_an_object(tmp_path):
    coloured(scene(24, 36), BORDER).save(tmp_path / "m.png")
    assert (read_mask(tmp_path / "m.png", binary=True) == scene(24, 36)).all()
