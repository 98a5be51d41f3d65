"""Reading files, and the one pipeline for pictures and masks."""

from __future__ import annotations

import io
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from util.data import transform as T
from util.runtime.errors import FewShotError


def rng(seed=0):
    return np.random.default_rng(seed)


def make(**changes):
    keys = dict(
        train_h=40,
        train_w=56,
        val_size=64,
        scale_min=0.8,
        scale_max=1.25,
        rotate_min=-10,
        rotate_max=10,
        padding_label=255,
        augment=True,
        blur=True,
        resized_val=True,
    )
    return SimpleNamespace(**{**keys, **changes})


def picture(height=60, width=80, seed=0):
    small = rng(seed).integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


# ---------------------------------------------------------------------------- reading


@pytest.mark.parametrize("kind", ["RGB", "L", "CMYK", "P", "RGBA", "progressive"])
def test_every_kind_of_picture_becomes_rgb(tmp_path, kind):
    image = Image.fromarray(picture())
    expected = np.array(image)
    if kind in ("RGB", "progressive"):
        path = tmp_path / "a.jpg"
        image.save(path, quality=95, progressive=kind == "progressive")
        expected = np.array(Image.open(path).convert("RGB"))
    elif kind in ("L", "CMYK"):
        path = tmp_path / "a.jpg"
        image.convert(kind).save(path, quality=95)
        expected = np.array(Image.open(path).convert("RGB"))
    else:
        path = tmp_path / "a.png"
        image.convert(kind).save(path)
        expected = np.array(image.convert(kind).convert("RGB"))
    found = T.read_image(path)
    assert found.dtype == np.uint8 and found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= (8 if kind == "CMYK" else 0)


def test_exif_orientation_is_followed_unless_the_mask_says_otherwise(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to show
    Image.fromarray(picture(60, 80)).save(tmp_path / "a.jpg", exif=exif)
    assert T.read_image(tmp_path / "a.jpg").shape == (80, 60, 3)
    assert T.read_image(tmp_path / "a.jpg", orient=False).shape == (60, 80, 3)
    for shape in ((60, 80), (80, 60)):
        Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / "a.png")
        image, mask = T.read_pair(tmp_path / "a.jpg", tmp_path / "a.png")
        assert image.shape[:2] == mask.shape == shape


def bad_file(tmp_path, kind):
    buffer = io.BytesIO()
    if kind == "truncated jpeg":
        Image.fromarray(picture()).save(buffer, "JPEG")
        data = buffer.getvalue()[: len(buffer.getvalue()) // 2]
    elif kind == "truncated png":
        Image.fromarray(rng().integers(0, 255, (50, 50), dtype=np.uint8)).save(buffer, "PNG")
        data = buffer.getvalue()[:1500]
    elif kind == "header only":
        data = b"\xff\xd8\xff\xe0"
    elif kind == "text":
        data = b"not a picture at all"
    else:
        data = b""
    path = tmp_path / "broken.jpg"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "kind", ["truncated jpeg", "truncated png", "header only", "text", "empty"]
)
@pytest.mark.parametrize("read", [T.read_image, T.read_mask])
def test_broken_files_are_named(tmp_path, kind, read):
    path = bad_file(tmp_path, kind)
    with pytest.raises(FewShotError, match="broken.jpg"):
        read(path)


def test_missing_files_and_16_bit_pictures_are_named(tmp_path):
    for read in (T.read_image, T.read_mask):
        with pytest.raises(FewShotError, match="nowhere.png: there is no such"):
            read(tmp_path / "nowhere.png")
        with pytest.raises(FewShotError, match="cannot be read"):
            read(tmp_path)
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((4, 4), 3, np.uint16))
    with pytest.raises(FewShotError, match="deep.png.*more than 8 bits"):
        T.read_image(tmp_path / "deep.png")
    with pytest.raises(FewShotError, match="deep.png.*16-bit"):
        T.read_mask(tmp_path / "deep.png")


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"]))
def test_any_bytes_are_read_or_refused(tmp_path_factory, data, start):
    path = tmp_path_factory.getbasetemp() / "fuzz.bin"
    path.write_bytes(start + data)
    for read in (T.read_image, T.read_mask):
        with pytest.raises(FewShotError, match="fuzz.bin"):
            read(path)


def test_masks_are_indices_never_grey_values_of_the_palette(tmp_path):
    labels = np.array([[0, 1, 15], [20, 255, 7]], np.uint8)
    palette = Image.fromarray(labels).convert("P")
    palette.putdata(labels.ravel().tolist())
    palette.putpalette(rng(3).integers(0, 256, 768, dtype=np.uint8).tobytes())
    palette.save(tmp_path / "p.png")
    assert Image.open(tmp_path / "p.png").mode == "P"
    assert (T.read_mask(tmp_path / "p.png") == labels).all()
    Image.fromarray(labels).save(tmp_path / "l.png")
    assert (T.read_mask(tmp_path / "l.png") == labels).all()
    Image.fromarray(labels > 9).save(tmp_path / "one.png")
    assert (T.read_mask(tmp_path / "one.png") == (labels > 9)).all()
    Image.fromarray(np.dstack([labels] * 3)).save(tmp_path / "rgb.png")
    with pytest.raises(FewShotError, match="rgb.png.*RGB"):
        T.read_mask(tmp_path / "rgb.png")


def test_binary_masks_of_every_kind_say_the_same(tmp_path):
    truth = np.zeros((6, 8), np.uint8)
    truth[2:4, 3:7] = 1
    palette = Image.fromarray(truth * 3)
    palette.putpalette([0, 0, 0] * 256)
    files = {
        "ones": Image.fromarray(truth),
        "grey": Image.fromarray(truth * 255),
        "soft": Image.fromarray(truth * 230 + 5),
        "rgb": Image.fromarray(np.dstack([truth * 255] * 3)),
        "palette": palette,
        "bits": Image.fromarray(truth == 1),
        "empty": Image.fromarray(truth * 0),
    }
    for name, image in files.items():
        image.save(tmp_path / f"{name}.png")
        found = T.read_mask(tmp_path / f"{name}.png", binary=True)
        assert found.dtype == np.uint8
        assert (found == (0 if name == "empty" else truth)).all(), name


def test_different_sizes_are_an_error_that_names_both(tmp_path):
    Image.fromarray(picture(60, 80)).save(tmp_path / "a.jpg")
    Image.fromarray(np.zeros((60, 70), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(FewShotError, match=r"a.jpg is 80x60 .*a.png is 70x60"):
        T.read_pair(tmp_path / "a.jpg", tmp_path / "a.png")


# ---------------------------------------------------------------------------- floats and masks


def test_normalise_is_the_imagenet_formula():
    image = picture()
    expected = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    found = T.normalise(image)
    assert found.shape == (3, 60, 80) and found.dtype == torch.float32 and found.is_contiguous()
    assert np.abs(found.numpy() - expected.transpose(2, 0, 1)).max() < 1e-5
    both = T.normalise_batch(torch.stack([T.planes(image), T.planes(image[:, ::-1])]))
    assert torch.equal(both[0], found) and torch.equal(both[1], found.flip(-1))


def test_restore_cuts_the_padding_off_and_aligns_the_corners():
    logits = torch.zeros(1, 1, 8, 8)
    logits[..., :4, :6] = torch.arange(6.0)
    logits[..., 4:, :] = logits[..., 6:] = 99
    found = T.restore(logits, (4, 6), (9, 11))
    assert found.shape == (1, 1, 9, 11)
    assert torch.allclose(found[0, 0], torch.linspace(0, 5, 11).expand(9, 11), atol=1e-6)
    same = torch.rand(1, 2, 8, 8)
    assert torch.equal(T.restore(same, (8, 8), (8, 8)), same)
    assert T.restore(same.bfloat16(), (8, 8), (9, 9)).dtype == torch.float32
    assert T.restore(same.double(), (8, 8), (9, 9)).dtype == torch.float64


@pytest.mark.parametrize("ann_type", ["mask", "bbox"])
def test_object_mask_of_arrays_and_tensors(ann_type):
    labels = np.zeros((12, 12), np.uint8)
    labels[1:4, 1] = labels[3, 1:5] = 7  # an L
    labels[2, 3] = 255
    labels[8:10, 8:11] = 7
    labels[0, 9] = 3
    expected = np.where(labels == 7, 1, 0)
    if ann_type == "bbox":
        expected[1:4, 1:5] = 1
    expected[2, 3] = 255
    found = T.object_mask(labels, 7, ann_type)
    assert found.dtype == np.uint8 and (found == expected).all()
    tensor = T.object_mask(torch.from_numpy(labels), 7, ann_type)
    assert tensor.dtype == torch.uint8 and (tensor.numpy() == expected).all()
    assert (labels == 7).sum() == 12  # the argument is left as it was


# ---------------------------------------------------------------------------- training


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**31), st.integers(1, 3), st.booleans()
)
def test_pipelines_keep_types_sizes_and_labels(height, width, seed, masks, base):
    cfg = make()
    transform = T.base_train_transform(cfg) if base else T.train_transform(cfg)
    image = rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = rng(seed).integers(0, 4, (height, width), dtype=np.uint8)
    first = transform(rng(seed), image, *[mask] * masks)
    assert first[0].shape == (40, 56, 3) and first[0].dtype == np.uint8
    for found in first[1:]:
        assert found.shape == (40, 56) and found.dtype == np.uint8
        assert set(np.unique(found)) <= {0, 1, 2, 3, 255}
        assert (found == first[1]).all()  # every mask goes through the same geometry
    again = transform(rng(seed), image, mask)
    assert (again[0] == first[0]).all() and (again[1] == first[1]).all()


def test_picture_and_mask_move_together():
    image = np.zeros((60, 80, 3), np.uint8)
    image[20:44, 30:62] = 255
    mask = (image[..., 0] > 0).astype(np.uint8)
    for seed in range(12):
        for transform in (T.train_transform(make()), T.base_train_transform(make())):
            seen, labels = transform(rng(seed), image, mask)
            # Inside and outside, away from the edge that blur and interpolation soften.
            sides = dict(kernel=np.ones((9, 9)), borderType=cv2.BORDER_CONSTANT)
            core = cv2.erode(np.uint8(labels == 1), borderValue=0, **sides) > 0
            rest = cv2.dilate(np.uint8(labels != 0), borderValue=1, **sides) == 0
            assert core.any() and seen[core].min() > 200
            assert rest.any() and seen[rest].max() < 130  # the mean colour comes in at the sides


def test_steps_happen_half_of_the_time_and_within_their_range():
    image, mask = picture(), np.ones((60, 80), np.uint8)
    turned = sum((T.Rotate(-10, 10, 9)(rng(i), [image, mask])[1] == 9).any() for i in range(400))
    blurred = sum((T.blur(rng(i), [image, mask])[0] != image).any() for i in range(400))
    flipped = sum((T.flip(rng(i), [image, mask])[0] != image).any() for i in range(400))
    assert all(140 < count < 260 for count in (turned, blurred, flipped))
    heights = [T.Scale(0.5, 2.0)(rng(i), [image, mask])[1].shape[0] for i in range(200)]
    assert 30 <= min(heights) < 35 and 115 < max(heights) <= 120


def test_turned_in_border_is_the_mean_and_padding():
    image, mask = picture(), np.ones((60, 80), np.uint8)
    seed = next(i for i in range(99) if (T.Rotate(9, 10, 255)(rng(i), [mask])[0] == 255).any())
    seen, labels = T.Rotate(9, 10, 255)(rng(seed), [image, mask])
    assert labels[0, 0] == 255 and seen[0, 0].tolist() == [124, 116, 104]


def test_flip_and_blur_are_the_plain_operations():
    image, mask = picture(), rng().integers(0, 3, (60, 80), dtype=np.uint8)
    for seed in range(9):
        seen, labels = T.flip(rng(seed), [image, mask])
        assert (labels == mask).all() or (labels == mask[:, ::-1]).all()
        assert (seen == (image if (labels == mask).all() else image[:, ::-1])).all()
        seen, labels = T.blur(rng(seed), [image, mask])
        blurred = cv2.GaussianBlur(image, (5, 5), 0)
        assert labels is mask and ((seen == image).all() or (seen == blurred).all())


def test_without_augmentation_only_the_size_changes():
    image, mask = picture(), rng().integers(0, 3, (60, 80), dtype=np.uint8)
    seen, labels = T.train_transform(make(augment=False))(rng(), image, mask)
    assert (seen == cv2.resize(image, (56, 40))).all()
    assert (labels == cv2.resize(mask, (56, 40), interpolation=cv2.INTER_NEAREST)).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 60), st.integers(0, 80), st.integers(1, 40))
def test_crop_takes_the_first_place_that_keeps_the_object_or_the_best(seed, top, left, size):
    mask = np.zeros((70, 90), np.uint8)
    mask[:20, :30] = 255  # ignored pixels are no object
    mask[top : top + size, left : left + size] = 3
    where = np.arange(70 * 90).reshape(70, 90)
    image = np.dstack([where // 90, where % 90, where * 0]).astype(np.uint8)
    seen, labels = T.Crop(40, 50, 255)(rng(seed), [image, mask])
    draws = rng(seed)
    tops, lefts = draws.integers(0, 31, 31), draws.integers(0, 41, 31)
    held = [(mask[y : y + 40, x : x + 50] == 3).sum() for y, x in zip(tops, lefts, strict=True)]
    good = [i for i, h in enumerate(held) if h >= 0.85 * (mask == 3).sum()]
    best = good[0] if good else int(np.argmax(held))
    assert seen[0, 0].tolist() == [tops[best], lefts[best], 0]
    assert (labels == mask[tops[best] :, lefts[best] :][:40, :50]).all()


def test_crop_takes_the_best_place_when_none_is_good_enough():
    mask = np.ones((100, 100), np.uint8)
    mask[:, 50:] = 0
    found = [(T.Crop(40, 40, 255)(rng(s), [mask, mask])[1] == 1).sum() for s in range(10)]
    assert min(found) == 1600  # none holds 0.85 of it; some of 31 places are full of it


def test_small_pictures_are_padded_on_all_sides():
    image, mask = np.full((10, 20, 3), 7, np.uint8), np.ones((10, 20), np.uint8)
    seen, labels = T.Crop(16, 30, 255)(rng(), [image, mask])
    assert (labels[3:13, 5:25] == 1).all() and (labels == 1).sum() == 200
    assert (labels[labels != 1] == 255).all() and seen[0, 0].tolist() == [124, 116, 104]


# ---------------------------------------------------------------------------- evaluation


def test_evaluation_size_is_a_plain_resize_by_default():
    image, mask = picture(), rng().integers(0, 3, (60, 80), dtype=np.uint8)
    transform = T.val_transform(make())
    seen, labels = transform(image, mask)
    assert transform.content(60, 80) == (64, 64)
    assert (seen == cv2.resize(image, (64, 64))).all()
    assert (labels == cv2.resize(mask, (64, 64), interpolation=cv2.INTER_NEAREST)).all()


def test_padded_evaluation_floors_to_multiples_of_8():
    image, mask = np.full((60, 83, 3), 9, np.uint8), np.ones((60, 83), np.uint8)
    transform = T.val_transform(make(val_size=73, resized_val=False))
    seen, labels = transform(image, mask)
    assert transform.content(60, 83) == (48, 72)  # 52 and 73, floored
    assert seen.shape == (73, 73, 3) and labels.shape == (73, 73)
    assert (seen[:48, :72] == 9).all() and (labels[:48, :72] == 1).all()
    assert not seen[48:].any() and not seen[:, 72:].any()
    assert (labels[48:] == 255).all() and (labels[:, 72:] == 255).all()
    assert transform.content(3, 1000) == (8, 72)
