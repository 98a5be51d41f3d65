"""The predictor: annotations as people have them, and the same answer as the model itself."""

from __future__ import annotations

import operator
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from model import build_model
from tests.equality import same_labels
from tests.own_pictures import CONFIG, ROOT, disc, small_config, untrained, with_orientation, write
from tests.training_case import environment
from util.config import load_config
from util.data.held import object_in, pixels_of, source_of
from util.data.index import build_index
from util.data.transform import normalise, object_mask, read_mask, val_transform
from util.draw.panels import iou
from util.evaluate import Evaluator
from util.predict import binary_mask, box_mask, polygon_mask
from util.predict.figures import episode_figures
from util.predict.predictor import (
    FewShotPredictor,
    softmax_,
    strongest,
)
from util.runtime.errors import FewShotError
from util.weights.load import model_of

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def cfg():
    return small_config()


@pytest.fixture(scope="module")
def model(cfg):
    return untrained(cfg)


@pytest.fixture
def predictor(model, cfg):
    return FewShotPredictor(model, cfg, "cpu")


# --------------------------------------------------------------------------------- annotations


@given(arrays.arrays(np.uint8, (3, 4), elements=st.sampled_from([0, 1, 255])))
def test_binary_masks(mask):
    if 1 in mask:
        assert (binary_mask(mask) == mask).all()
    elif 255 in mask:
        assert (binary_mask(mask) == (mask == 255)).all()
    else:
        with pytest.raises(FewShotError, match="no object"):
            binary_mask(mask)


@given(arrays.arrays(np.uint8, (3, 4)), st.integers(1, 254))
def test_labelled_masks(mask, label):
    if label not in mask:
        with pytest.raises(FewShotError, match="no object"):
            binary_mask(mask, label)
        return
    result = binary_mask(mask, label)
    assert ((result == 1) == (mask == label)).all() and ((result == 255) == (mask == 255)).all()
    assert np.isin(result, (0, 1, 255)).all()


def test_masks_that_say_too_much_or_too_little():
    assert binary_mask(np.eye(3, dtype=bool)).sum() == 3
    with pytest.raises(FewShotError, match=r"several labels \(0, 1, 2\)"):
        binary_mask(np.array([[0, 1, 2]]))
    with pytest.raises(FewShotError, match="float64"):
        binary_mask(np.ones((2, 2)))
    with pytest.raises(FewShotError, match=r"\(2, 2, 3\)"):
        binary_mask(np.ones((2, 2, 3), np.uint8))


def test_boxes_and_polygons():
    mask = box_mask((10, 20), (2, 3, 5, 7))
    assert mask.sum() == 12 and mask[3:7, 2:5].all()
    for box in ((5, 3, 2, 7), (0, 0, 21, 5), (-1, 0, 5, 5)):
        with pytest.raises(FewShotError, match="20×10"):
            box_mask((10, 20), box)
    square = polygon_mask((10, 20), [[2, 3, 5, 3, 5, 7, 2, 7], [15, 1, 17, 1, 17, 3]])
    # As COCO's tools draw it: the square covers the pixels of the box with the same corners.
    assert (square[:, :14] == mask[:, :14]).all() and square[1, 16] and not square[:, 8:14].any()
    for polygon in ([1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7]):
        with pytest.raises(FewShotError, match="three or more"):
            polygon_mask((10, 20), [polygon])


# ---------------------------------------------------------------------------------- prediction


@given(arrays.arrays(np.float32, (3, 2, 4), elements=st.floats(-5, 5, width=16)))
def test_strongest_and_softmax(odds):
    odds = torch.from_numpy(odds)
    assert (strongest(odds) == odds.argmax(0)).all()
    assert torch.allclose(softmax_(odds.clone()), odds.softmax(0), atol=1e-6)


def directly(model, cfg, supports, query) -> torch.Tensor:
    """The model's own forward pass, logits at the query's size [2, H, W]."""
    fit = val_transform(cfg)
    fitted = [fit(image, mask) for image, mask in supports]
    with torch.inference_mode():
        out = model(
            normalise(fit(query)[0])[None],
            torch.stack([normalise(image) for image, _ in fitted])[None],
            torch.stack([torch.from_numpy(mask) for _, mask in fitted])[None],
        )
        return F.interpolate(out.final, query.shape[:2], mode="bilinear", align_corners=True)[0]


@pytest.mark.parametrize("shots", [1, 3, 5])
def test_predictor_is_the_model(predictor, model, cfg, shots):
    supports = [disc((70 + 10 * i, 90), i) for i in range(shots)]
    query, _ = disc((100, 64), 9)
    for image, mask in supports:
        predictor.add_support(image, mask, "disc")
    result = predictor.predict(query)
    logits = directly(model, cfg, supports, query)
    assert result.mask.shape == (100, 64) and result.mask.dtype == np.uint8
    assert 0.02 < result.mask.mean() < 0.98
    assert np.allclose(result.probabilities, logits.softmax(0).numpy(), atol=1e-5)
    clear = (logits[1] - logits[0]).abs().numpy() > 1e-4
    assert (result.mask == logits.argmax(0).numpy())[clear].all() and clear.mean() > 0.9
    assert [c.shape for c in result.correlations["disc"]] == [(11, 11), (6, 6), (3, 3)]
    assert result.priors["disc"].shape == (2, 11, 11)


def test_several_classes(predictor):
    query, _ = disc((50, 60), 3)
    alone = {}
    for seed, name in enumerate(("a", "b", "c")):
        single = predictor.without_supports()
        single.add_support(*disc((80, 60), seed), name)
        predictor.add_support(*disc((80, 60), seed), name)
        alone[name] = single.predict(query)
    predictor.add_support(*disc((60, 80), 7), "b")  # another number of supports for one class
    result = predictor.predict(query)
    assert predictor.classes == ("a", "b", "c") and predictor.shots == {"a": 1, "b": 2, "c": 1}
    assert result.probabilities.shape == (4, 50, 60)
    assert np.allclose(result.probabilities.sum(0), 1, atol=1e-5)
    assert (result.mask == result.probabilities.argmax(0)).mean() > 0.999
    assert len(np.unique(result.mask)) > 1
    # What no class alone wants is background, and a class that wins would have won alone.
    for number, name in ((1, "a"), (3, "c")):
        assert alone[name].mask[result.mask == number].all()
        assert not alone[name].mask[result.mask == 0].any()
    predictor.remove_support("b")
    assert predictor.shots == {"a": 1, "b": 1, "c": 1}
    predictor.remove_support("b")
    assert predictor.classes == ("a", "c")
    with pytest.raises(FewShotError, match="no class 'b'; there are: a, c"):
        predictor.remove_support("b")
    odds = [np.log(alone[n].probabilities[1] / alone[n].probabilities[0]) for n in ("a", "c")]
    expected = torch.from_numpy(np.stack([0 * odds[0], *odds])).softmax(0).numpy()
    assert np.allclose(predictor.predict(query).probabilities, expected, atol=1e-5)
    with pytest.raises(FewShotError, match="a, c"):
        predictor.remove_class("b")


def test_hsnet(tmp_path):
    """Another method on the same rails: no prior, no base learner, other maps."""
    cfg = load_config(CONFIG.with_name("demo_split0_resnet18_hsnet.yaml"))
    torch.manual_seed(0)
    model = build_model(cfg)
    predictor = FewShotPredictor(model, cfg, "cpu")
    supports = [disc((70, 90), 0)]
    query, _ = disc((64, 80), 9)
    predictor.add_support(*supports[0])
    result = predictor.predict(query)
    logits = directly(model, cfg, supports, query)
    assert np.allclose(result.probabilities, logits.softmax(0).numpy(), atol=1e-5)
    assert result.priors == {} and len(result.correlations["object"]) == 3
    predictor.add_support(*disc((80, 60), 1))
    assert predictor.predict(query).mask.shape == (64, 80)


def test_supports_are_encoded_once(predictor, model, monkeypatch):
    calls = []
    for name in ("encode_support", "encode_query"):
        method = getattr(model, name)
        monkeypatch.setattr(
            model, name, lambda *a, name=name, method=method: calls.append(name) or method(*a)
        )
    for seed in range(2):
        predictor.add_support(*disc((50, 50), seed), "a")
    predictor.add_support(*disc((50, 50), 2), "b")
    for seed in range(3):
        predictor.predict(disc((50, 50), seed)[0])
    assert calls == ["encode_support"] * 3 + ["encode_query"] * 3


def test_padded_input_shows_maps_of_the_picture_only(model):
    cfg = small_config(resized_val=False)
    predictor = FewShotPredictor(model, cfg, "cpu")
    predictor.add_support(*disc((40, 80), 0))
    result = predictor.predict(disc((40, 80), 1)[0])
    assert result.mask.shape == (40, 80)
    height, width = val_transform(cfg).content(40, 80)
    assert (height, width) == (40, 80)
    assert result.correlations["object"][0].shape == (6, 11)
    assert result.priors["object"].shape == (2, 6, 11)


def test_bounding_boxes_instead_of_masks(model):
    """ann_type bbox: a mask counts as its box, so that both kinds of support give one result."""
    predictor = FewShotPredictor(model, small_config(ann_type="bbox"), "cpu")
    image, mask = disc((81, 81), 0)
    rows, columns = np.nonzero(mask)
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    other = predictor.without_supports()
    predictor.add_support(image, mask)
    other.add_support(image, box=box)
    query, _ = disc((60, 60), 2)
    a, b = predictor.predict(query), other.predict(query)
    assert (a.probabilities == b.probabilities).all()


def test_meta_leaves_the_base_learner_out(model, cfg):
    query, _ = disc((60, 60), 2)
    results = []
    for output in ("final", "meta"):
        predictor = FewShotPredictor(model, cfg, "cpu", output)
        predictor.add_support(*disc((60, 60), 0))
        results.append(predictor.predict(query).probabilities)
    assert not np.allclose(*results, atol=1e-3)
    with pytest.raises(FewShotError, match="'final' or 'meta'"):
        FewShotPredictor(model, cfg, "cpu", "base")


# --------------------------------------------------------------------------------------- files


def test_paths_equal_arrays_and_exif_is_honoured(predictor, tmp_path):
    image, mask = disc((60, 80), 0)
    path = write(tmp_path / "a.png", image)
    by_array = predictor.without_supports()
    by_array.add_support(image, mask)
    query, _ = disc((50, 90), 1)
    expected = by_array.predict(query)
    for number, values in enumerate((mask, mask * 255, mask * 7, np.dstack([mask * 255] * 3))):
        file = write(tmp_path / f"m{number}.png", values)
        one = predictor.without_supports()
        one.add_support(path, file, label=7 if number == 2 else None)
        assert (one.predict(query).probabilities == expected.probabilities).all()

    sideways = write(tmp_path / "phone.jpg", query)
    with_orientation(sideways, 6)
    assert by_array.predict(sideways).mask.shape == (90, 50)
    stored = write(tmp_path / "stored.jpg", image)
    with_orientation(stored, 6)
    upright = write(tmp_path / "upright.png", np.rot90(mask, -1))
    predictor.add_support(stored, upright, "shown")
    predictor.add_support(stored, write(tmp_path / "raw.png", mask), "as stored")
    assert predictor.shots == {"shown": 1, "as stored": 1}


def test_an_output_that_is_not_finite_is_no_answer(cfg):
    broken = untrained(cfg)
    last = [m for m in broken.decoder.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    predictor = FewShotPredictor(broken, cfg, "cpu")
    predictor.add_support(*disc((60, 60), 1), "mug")
    last.bias.data[1] = torch.inf
    with pytest.raises(FewShotError, match="output for class 'mug' is not finite"):
        predictor.predict(disc((60, 60), 2)[0])


PHONE = """
import resource, sys, time
from pathlib import Path
from model import build_model
from util.config import load_config
from util.predict.predictor import FewShotPredictor
from util.predict.writing import summarise, write_results
from util.data.transform import read_image

folder = Path(sys.argv[1])
cfg = load_config("config/pascal/pascal_split0_resnet50.yaml")
predictor = FewShotPredictor(build_model(cfg), cfg, "cpu")
predictor.add_support(folder / "phone.jpg", box=(800, 1000, 2200, 3000))
begin = time.process_time()
result = predictor.predict(folder / "phone.jpg")
seconds = time.process_time() - begin
assert result.mask.shape == (4000, 3000), result.mask.shape
summarise(folder / "phone.jpg", result)
write_results(folder / "out", "phone", read_image(folder / "phone.jpg"), result)
print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@pytest.mark.slow
def test_a_picture_from_a_phone(tmp_path):
    """12 megapixels lying on their side, ResNet-50 at the default size: time and memory."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    write(tmp_path / "phone.jpg", cv2.resize(noise, (4000, 3000)))
    with_orientation(tmp_path / "phone.jpg", 6)
    words = [sys.executable, "-c", PHONE, str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seconds, gigabytes = map(float, done.stdout.split())
    # Processor time of one thread: the clock would measure what else the machine does.
    assert seconds < 10 and gigabytes < 3


def holders(image: np.ndarray, path: Path) -> dict[str, object]:
    """One picture in every way in which people hold pictures."""
    write(path, image)
    return {
        "text": str(path),
        "bytes": bytes(path),
        "path": path,
        "Pillow": Image.fromarray(image),
        "Pillow, transparent": Image.fromarray(image).convert("RGBA"),
        "array": image,
        "array of BGR, turned": image[..., ::-1].copy()[..., ::-1],
        "array with alpha": np.dstack([image, image[..., 0]]),
        "tensor, channels first": torch.from_numpy(image).permute(2, 0, 1),
        "tensor, channels last": torch.from_numpy(image),
    }


def mask_holders(mask: np.ndarray, path: Path) -> dict[str, object]:
    write(path, mask * 255)
    return {
        "bytes": bytes(path),
        "path": path,
        "Pillow": Image.fromarray(mask * 255),
        "Pillow, 1 bit": Image.fromarray(mask * 255).convert("1"),
        "bool": mask == 1,
        "int64": mask.astype(np.int64) * 255,
        "lists": mask.tolist(),
        "tensor": torch.from_numpy(mask),
        "bool tensor": torch.from_numpy(mask) == 1,
    }


def test_pictures_and_masks_as_people_hold_them(tmp_path):
    image, mask = disc((20, 30), 0)
    picture_file, mask_file = tmp_path / "a.png", tmp_path / "m.png"
    for name, held in holders(image, picture_file).items():
        pixels = pixels_of(source_of(held, "a picture"))
        assert (pixels == image).all() and pixels.flags.c_contiguous, name
    for name, held in mask_holders(mask, mask_file).items():
        assert (object_in(source_of(held, "the mask"), None, "the mask") == mask).all(), name
    grey = image[..., 0]
    for held in (grey, grey[..., None], torch.from_numpy(grey)[None], Image.fromarray(grey)):
        pixels = pixels_of(source_of(held, "a picture"))
        assert (pixels == grey[..., None]).all() and pixels.shape == image.shape
    # A Pillow image is turned as the file that it was read from, and stays as it was.
    lying = write(tmp_path / "phone.jpg", image)
    with_orientation(lying, 6)
    with Image.open(lying) as opened:
        assert (pixels_of(opened) == pixels_of(lying)).all() and opened.size == (30, 20)
    labels = Image.fromarray(mask * 3)
    for label in (3, np.int64(3), np.uint8(3), torch.tensor(3)):
        assert (object_in(labels, operator.index(label), "the mask") == mask).all()


def test_the_predictor_takes_them_all(predictor, tmp_path):
    image, mask = disc((40, 50), 0)
    predictor.add_support(Image.fromarray(image), Image.fromarray(mask), np.str_("a"))
    predictor.add_support(bytes(write(tmp_path / "a.png", image)), torch.from_numpy(mask), "a")
    predictor.add_support(image, mask * 3, "a", label=np.int16(3))
    for box in ([5, 6, 30, 31], np.array([5, 6, 30, 31]), torch.tensor([5.0, 6, 30, 31])):
        predictor.add_support(image, class_name="a", box=box)
    for polygons in ([[5, 6, 30, 6, 30, 31]], np.array([[5, 6, 30, 6, 30, 31.0]])):
        predictor.add_support(image, class_name="a", polygons=polygons)
    assert predictor.shots == {"a": 8}
    results = [predictor.predict(held).probabilities for held in (image, Image.fromarray(image))]
    assert (results[0] == results[1]).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"image": None}, "a picture is a path, a Pillow image, an array .* not NoneType"),
        ({"image": {"a": 1}}, "not dict"),
        ({"image": 3}, "a picture is RGB uint8"),
        ({"image": open(__file__, "rb")}, "not BufferedReader"),  # noqa: SIM115
        ({"image": b"\x89PNG\r\n\x1a\n\0\0"}, "not the bytes of a file"),
        ({"image": [[1, 2], [3]]}, "a picture cannot be made an array"),
        ({"image": np.zeros((40, 50, 3), bool)}, "a picture is RGB uint8 .* not bool"),
        ({"image": np.zeros((40, 50, 3), np.float32)}, "0..255, not float32"),
        ({"image": torch.zeros(3, 40, 50)}, "0..255, not float32"),
        ({"image": torch.zeros(3, 40, 3, dtype=torch.uint8)}, "first or its last"),
        ({"image": np.zeros((3, 40, 50), np.uint8)}, r"uint8 \(3, 40, 50\)"),
        ({"image": np.zeros((0, 50, 3), np.uint8)}, "no pixels"),
        ({"image": Image.new("F", (50, 40))}, "Pillow image: .* more than 8 bits"),
        ({"mask": 1.5}, "must hold whole numbers"),
        ({"mask": np.zeros((40, 50))}, "must hold whole numbers"),
        ({"mask": object()}, "the mask of a support of class 'object' is a path.* not object"),
        ({"mask": [[1, 2], [3]]}, "the mask .* cannot be made an array"),
        ({"mask": Image.new("RGB", (50, 40))}, "the mask .* has no object pixel"),
        ({"mask": Image.new("L", (40, 50), 255)}, "is 50x40 pixels, but the mask .* 40x50"),
        ({"label": "3"}, "label is a whole number, not '3'"),
        ({"label": 3.0}, "label is a whole number, not 3.0"),
        ({"label": [3]}, "label is a whole number"),
        ({"label": 10**30}, "no object pixel"),
        ({"box": (1, 2, 3, 4)}, "exactly one of"),
        ({"mask": None}, "exactly one of"),
        ({"mask": None, "box": (1, 2, 3, 4), "label": 3}, "there is no mask"),
        ({"mask": None, "box": (1, 2, 3)}, r"four numbers .* not \(1, 2, 3\)"),
        ({"mask": None, "box": ("a", 1, 2, 3)}, "four numbers"),
        ({"mask": None, "box": "1,2,3,4"}, "four numbers"),
        ({"mask": None, "box": 5}, "four numbers"),
        ({"mask": None, "box": ([1], [2], [3], [4])}, "four numbers"),
        ({"mask": None, "box": (0.1, 0.2, 0.6, 0.7)}, "its corners are 5,8,30,28"),
        ({"mask": None, "box": (1, 2, float("inf"), 4)}, "no number"),
        ({"mask": None, "polygons": [1, 2, 3, 4, 5, 6]}, "flat list"),
        ({"mask": None, "polygons": "abc"}, "flat list"),
        ({"mask": None, "polygons": 7}, "no polygon"),
        ({"mask": None, "polygons": []}, "no polygon"),
        ({"mask": None, "polygons": [[0.1, 0.1, 0.9, 0.1, 0.9, 0.9]]}, "multiply fractions"),
        ({"mask": None, "polygons": [[1, 1, 99, 1, 99, 30]]}, "outside the picture of 50×40"),
        ({"class_name": 3}, "a class name is text"),
        ({"class_name": None}, "a class name is text"),
        ({"class_name": " "}, "a class name is text"),
    ],
)  # fmt: skip
def test_another_type_is_one_sentence(predictor, arguments, words):
    image, mask = disc((40, 50), 0)
    with pytest.raises(FewShotError, match=words):
        predictor.add_support(**{"image": image, "mask": mask, **arguments})
    assert predictor.classes == ()


def test_the_other_arguments_are_looked_at_too(predictor, model, cfg):
    for arguments, words in (
        (("config.yaml",), "cfg is what load_config returns, not str"),
        ((cfg, 3), "weight is the path of a checkpoint, not int"),
    ):
        with pytest.raises(FewShotError, match=words):
            FewShotPredictor.from_config(*arguments)
    for arguments, words in (
        (("best.pth", cfg), "model is what build_model returns, not str"),
        ((model, {"arch": "HDMNet"}), "cfg is what load_config returns, not dict"),
        ((model, cfg, [1]), "device"),
        ((model, cfg, "cpu", ["final"]), "'final' or 'meta'"),
    ):
        with pytest.raises(FewShotError, match=words):
            FewShotPredictor(*arguments)
    with pytest.raises(FewShotError, match="no class"):
        predictor.remove_class(["a"])
    with pytest.raises(FewShotError, match="no class"):
        predictor.remove_support(["a"])
    with pytest.raises(FewShotError, match="supports are a folder or a file, not list"):
        predictor.add_supports(["a"])
    with pytest.raises(FewShotError, match="there is no folder nowhere"):
        predictor.add_supports(b"nowhere")
    predictor.add_support(*disc((40, 50), 0))
    with pytest.raises(FewShotError, match="a picture is a path"):
        predictor.predict(None)


def test_accents_and_blanks_make_no_other_class(predictor):
    for number, name in enumerate(("caf\u00e9", "cafe\u0301", " caf\u00e9")):
        predictor.add_support(*disc((40, 50), number), name)
    assert predictor.shots == {"caf\u00e9": 3}


def test_mistakes_are_one_sentence(predictor, tmp_path):
    image, mask = disc((60, 80), 0)
    path = write(tmp_path / "a.png", image)
    with pytest.raises(FewShotError, match="exactly one of"):
        predictor.add_support(image)
    with pytest.raises(FewShotError, match="exactly one of"):
        predictor.add_support(image, mask, box=(0, 0, 5, 5))
    with pytest.raises(FewShotError, match="79x60 pixels"):
        predictor.add_support(image, mask[:, 1:])
    with pytest.raises(FewShotError, match="no object"):
        predictor.add_support(image, np.zeros_like(mask))
    with pytest.raises(FewShotError, match="colour picture"):
        predictor.add_support(path, path)
    with pytest.raises(FewShotError, match="nowhere.png"):
        predictor.add_support(tmp_path / "nowhere.png", mask)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 not really")
    with pytest.raises(FewShotError, match="broken.jpg"):
        predictor.add_support(broken, mask)
    with pytest.raises(FewShotError, match="broken.jpg"):
        predictor.add_support(image, broken)
    speck = np.zeros((2000, 2000), np.uint8)
    speck[11, 13] = 1
    with pytest.raises(FewShotError, match="vanishes"):
        predictor.add_support(np.zeros((2000, 2000, 3), np.uint8), speck)
    with pytest.raises(FewShotError, match="float32"):
        predictor.add_support(image.astype(np.float32), mask)
    assert predictor.classes == ()
    with pytest.raises(FewShotError, match="no support"):
        predictor.predict(image)


def test_weights_bring_their_configuration(tmp_path, model, cfg):
    path = tmp_path / "best.pth"
    torch.save({"model": model.state_dict(), "config": cfg.to_dict()}, path)
    found, weight = model_of(None, path, ["TRAIN.val_size", "97"])
    assert (found.arch, found.val_size, weight) == (cfg.arch, 97, path)
    loaded = FewShotPredictor.from_config(*model_of(None, path), "cpu").model.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())
    with pytest.raises(FewShotError, match="give --config"):
        model_of(None, None)
    with pytest.raises(FewShotError, match="no value"):
        model_of(None, path, ["shot"])
    torch.save({"model": model.state_dict()}, path)
    with pytest.raises(FewShotError, match="holds no configuration"):
        model_of(None, path)
    part = {key: value for key, value in model.state_dict().items() if "decoder" not in key}
    torch.save({"model": part, "config": cfg.to_dict()}, path)
    with pytest.raises(FewShotError, match="decoder"):
        FewShotPredictor.from_config(*model_of(None, path), "cpu")


# ------------------------------------------------------------------------- the same as test.py


@pytest.fixture(scope="module")
def episodes(tmp_path_factory, model):
    """A data set of three classes, and what the evaluation says of each of its episodes."""
    root = tmp_path_factory.mktemp("data")
    lines = []
    for number in range(9):
        image, mask = disc((60 + 4 * number, 90), number)
        write(root / f"{number}.png", image)
        labels = mask * np.uint8(1 + number % 3)
        labels[0] = 255
        labels[2:6, 2:6] = 1 + (number + 1) % 3
        write(root / f"{number}_mask.png", labels)
        lines.append(f"{number}.png {number}_mask.png\n")
    (root / "list.txt").write_text("".join(lines))
    return root


@pytest.mark.parametrize("changes", [{}, {"shot": 2}, {"resized_val": False}, {"ann_type": "bbox"}])
def test_same_episodes_same_iou_as_the_evaluation(episodes, model, changes, tmp_path, decided):
    """The evaluation matches several episodes at a time: sums in another order."""
    cfg = small_config(
        data_set="discs",
        trained_on="demo",
        data_root=str(episodes),
        train_list=str(episodes / "list.txt"),
        val_list=str(episodes / "list.txt"),
        class_names=["red", "green", "blue"],
        folds=[[1, 2, 3]],
        min_pixels=50,
        exp_root=str(tmp_path),
        **changes,
    )
    index = build_index(cfg, "test")
    evaluator = Evaluator(cfg, index, "cpu")
    result = evaluator.run(model, seeds=[5], episodes=6, details=True, progress=False)
    assert len(result.scored) == 6
    predictor = FewShotPredictor(model, cfg, "cpu")
    found = []
    for score, episode in result.scored:
        predictor.reset()
        for position in episode.supports:
            image, mask = index.pairs[position]
            predictor.add_support(image, mask, "it", label=episode.class_id)
        image, mask = index.pairs[episode.query]
        truth = object_mask(read_mask(mask), episode.class_id)
        label = torch.from_numpy(predictor.predict(image).mask == 1)[None]
        logits = result.counts.decided["final", 0, episode.index].values[None]
        evaluated = logits.argmax(1) == 1
        assert same_labels(label, evaluated, logits)
        found.append(iou(label[0].numpy(), truth))
        assert found[-1] == score or not torch.equal(label, evaluated)
    assert len(set(found)) > 3
    if not changes:
        model.train()
        paths = episode_figures(model, cfg, index, result.scored, tmp_path, 1)
        assert model.training
        model.eval()
        assert [path.name.split("_")[0] for path in paths] == ["best", "median", "worst"]
        assert all(path.is_file() for path in paths)
