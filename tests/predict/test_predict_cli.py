"""predict.py: what it accepts, what it writes, and that it goes on where it stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import predict
from tests.own_pictures import ROOT, disc, small_config, untrained, write
from util.data.transform import read_image
from util.predict.predictor import FewShotPredictor, Prediction
from util.predict.refine import refined
from util.predict.supports import Support
from util.predict.threshold import class_scores, labels_at
from util.predict.writing import summarise, write_results
from util.runtime.errors import FewShotError, Interrupted

COCO = ROOT.parent / "shared" / "data" / "coco128"


@pytest.fixture(scope="module")
def weight(tmp_path_factory) -> Path:
    cfg = small_config()
    path = tmp_path_factory.mktemp("weights") / "best.pth"
    torch.save({"model": untrained(cfg).state_dict(), "config": cfg.to_dict()}, path)
    return path


@pytest.fixture
def place(tmp_path) -> Path:
    """Two classes of supports and three queries, of different sizes."""
    for number, name in enumerate(("mug", "red disc")):
        for shot in range(2):
            image, mask = disc((70, 80 + 10 * shot), 10 * number + shot)
            write(tmp_path / "supports" / name / f"{shot}.jpg", image)
            write(tmp_path / "supports" / name / f"{shot}.png", mask * 255)
    for number, name in enumerate(("a.jpg", "b.png", "deep/c.jpg")):
        write(tmp_path / "photos" / name, disc((60 + number, 90), 20 + number)[0])
    (tmp_path / "photos" / "notes.txt").write_text("not a picture")
    return tmp_path


def call(monkeypatch, weight: Path, *arguments) -> None:
    words = ["predict.py", "--weight", weight, "--device", "cpu", *arguments]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    predict.main()


def test_folder_to_folder(monkeypatch, weight, place, capsys):
    out = place / "out"
    (place / "supports" / ".git").mkdir()
    call(monkeypatch, weight, "--supports", place / "supports", "--query", place / "photos",
         "--output", out)  # fmt: skip
    assert "no classes: .git" in capsys.readouterr().err
    summary = json.loads((out / "summary.json").read_text())
    assert summary["classes"] == {
        "mug": {"label": 1, "supports": 2},
        "red disc": {"label": 2, "supports": 2},
    }
    assert [Path(entry["file"]).name for entry in summary["pictures"]] == [
        "a.jpg",
        "b.png",
        "c.jpg",
    ]
    predictor = FewShotPredictor(untrained(small_config()), small_config(), "cpu")
    for support in predict.supports_in(place / "supports")[0]:
        predictor.add_support(support.image, class_name=support.class_name, **support.annotation())
    for entry, name in zip(summary["pictures"], ("a", "b", "deep/c"), strict=True):
        image = read_image(entry["file"])
        size = (entry["height"], entry["width"])
        assert size == image.shape[:2]
        label = Image.open(out / "labels" / f"{name}.png")
        assert label.mode == "P" and label.size == size[::-1]
        labels = np.array(label)
        expected = predictor.predict(image)
        assert (labels == expected.mask).all()
        assert cv2.imread(str(out / "overlays" / f"{name}.jpg")).shape == (*size, 3)
        for number, class_name in ((1, "mug"), (2, "red disc")):
            found = entry["classes"][class_name]
            where = labels == number
            assert found["pixels"] == where.sum()
            assert found["fraction"] == pytest.approx(where.mean())
            file = f"{name}/{number}_{class_name}"
            levels = cv2.imread(str(out / "probabilities" / f"{file}.png"), cv2.IMREAD_UNCHANGED)
            assert levels.shape == size
            assert np.abs(levels / 255 - expected.probabilities[number]).max() < 0.003
            if where.any():
                rows, columns = np.nonzero(where)
                box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert found["box"] == box
                assert found["probability"] == pytest.approx(
                    float(expected.probabilities[number][where].mean())
                )
            else:
                assert "box" not in found
            for stage in (1, 2, 3):
                assert (
                    cv2.imread(str(out / "correlations" / f"{file}_stage{stage}.jpg")) is not None
                )
        assert all((out / file).is_file() for file in entry["results"])


def test_goes_on_where_it_stopped(monkeypatch, weight, place):
    out = place / "out"
    arguments = ("--supports", place / "supports", "--query", place / "photos", "--output", out)
    asked = []
    real = FewShotPredictor.predict

    def counted(self, image):
        asked.append(image.shape[0])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(self, image)

    monkeypatch.setattr(FewShotPredictor, "predict", counted)
    with pytest.raises(Interrupted, match="goes on where it stopped"):
        call(monkeypatch, weight, *arguments)
    assert not (out / "summary.json").exists()
    call(monkeypatch, weight, *arguments)
    assert asked == [60, 61, 61, 62]
    assert json.loads((out / "summary.json").read_text())["kept_from_earlier_call"] == 1
    call(monkeypatch, weight, *arguments)
    assert len(asked) == 4
    # What could change a result makes it anew: a lost file, a changed query, a changed support.
    (out / "labels" / "a.png").unlink()
    call(monkeypatch, weight, *arguments)
    assert asked[4:] == [60]
    write(place / "photos" / "b.png", disc((50, 50), 3)[0])
    call(monkeypatch, weight, *arguments)
    assert asked[5:] == [50]
    write(place / "supports" / "mug" / "0.png", disc((70, 80), 77)[1])
    call(monkeypatch, weight, *arguments)
    assert len(asked) == 9
    call(monkeypatch, weight, *arguments, "--head", "meta")
    assert len(asked) == 12


def test_support_kinds(monkeypatch, weight, place):
    image, mask = disc((60, 80), 1)
    write(place / "s.png", image)
    write(place / "labels.png", mask * 7 + (1 - mask) * 3)
    rows, columns = np.nonzero(mask)
    x0, y0, x1, y1 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    square = [int(v) for v in (x0, y0, x1, y0, x1, y1, x0, y1)]
    annotations = {
        "images": [{"id": 4, "file_name": "s.png"}],
        "categories": [{"id": 9, "name": "pan"}, {"id": 2, "name": "lid"}],
        "annotations": [
            {"image_id": 4, "category_id": 9, "iscrowd": 0, "segmentation": [square]},
            {"image_id": 4, "category_id": 9, "iscrowd": 1, "segmentation": {"counts": "x"}},
            {"image_id": 4, "category_id": 2, "iscrowd": 0, "segmentation": [[0, 0, 9, 0, 9, 9]]},
        ],
    }
    (place / "coco.json").write_text(json.dumps(annotations))
    call(
        monkeypatch, weight,
        "--support", place / "s.png", f"{place}/labels.png#7", "by label",
        "--support", place / "s.png", f"box:{x0},{y0},{x1},{y1}", "by box",
        "--support", place / "s.png", place / "coco.json", "pan",
        "--query", place / "photos" / "a.jpg", f"{place}/photos/*.png",
        "--output", place / "out",
    )  # fmt: skip
    summary = json.loads((place / "out" / "summary.json").read_text())
    assert list(summary["classes"]) == ["by label", "by box", "pan"]
    assert len(summary["pictures"]) == 2
    for mask_name, class_name, message in (
        ("coco.json", "cup", "no category 'cup'"),
        ("labels.png", "x", "several labels"),
        ("labels.png#5", "x", "label 5"),
        ("labels.png#²", "x", "labels.png#²"),
        ("box:1,2,3", "x", "box:x0,y0,x1,y1"),
        ("box:0.1,0.2,0.6,0.7", "x", "s.png': .* corners are 8,12,48,42"),
        ("nothing.json", "x", "nothing.json"),
    ):
        mask_name = mask_name if mask_name.startswith("box") else f"{place}/{mask_name}"
        with pytest.raises(FewShotError, match=message):
            call(monkeypatch, weight, "--support", place / "s.png", mask_name, class_name,
                 "--query", place / "photos", "--output", place / "out2")  # fmt: skip


def test_annotation_files(monkeypatch, weight, place):
    """Whatever annotations are kept in, the same supports give the same result."""
    image, _ = disc((60, 80), 1)
    square = [20, 10, 50, 10, 50, 40, 20, 40]
    labelme, coco = place / "labelme", place / "coco"
    for folder in (labelme, coco):
        write(folder / "s.png", image)
    shapes = [
        {"label": "pan", "shape_type": "rectangle", "points": [[50, 10], [20, 40]]},
        {"label": "lid", "shape_type": "polygon", "points": [[0, 0], [30, 0], [30, 30]]},
    ]
    (labelme / "s.json").write_text(
        json.dumps({"shapes": shapes, "imagePath": "s.png", "imageHeight": 60, "imageWidth": 80})
    )
    objects = [
        {"image_id": 1, "category_id": 1, "segmentation": [square]},
        {"image_id": 1, "category_id": 2, "segmentation": [[0, 0, 30, 0, 30, 30]]},
    ]
    names = [{"id": 1, "name": "pan"}, {"id": 2, "name": "lid"}]
    listed = [{"id": 1, "file_name": "s.png", "height": 60, "width": 80}]
    (coco / "c.json").write_text(
        json.dumps({"images": listed, "categories": names, "annotations": objects})
    )
    ways = (
        ("--supports", labelme),
        ("--supports", coco / "c.json"),
        ("--support", labelme / "s.png", labelme / "s.json"),
        ("--support", coco / "s.png", coco / "c.json", "pan",
         "--support", coco / "s.png", coco / "c.json", "lid"),
    )  # fmt: skip
    found = []
    for number, way in enumerate(ways):
        out = place / f"out{number}"
        call(monkeypatch, weight, *way, "--query", place / "photos" / "a.jpg", "--output", out)
        assert list(json.loads((out / "summary.json").read_text())["classes"]) == ["pan", "lid"]
        found.append(np.array(Image.open(out / "labels" / "a.png")))
    predictor = FewShotPredictor(untrained(small_config()), small_config(), "cpu")
    assert predictor.add_supports(labelme) == []
    found.append(predictor.predict(place / "photos" / "a.jpg").mask)
    predictor.reset()
    for name in ("pan", "lid"):
        predictor.add_support(str(coco / "s.png"), coco / "c.json", name)
    found.append(predictor.predict(place / "photos" / "a.jpg").mask)
    assert all((labels == found[0]).all() for labels in found) and found[0].any()
    with pytest.raises(FewShotError, match="c.json has no category 'cup'; it has: lid, pan"):
        predictor.add_support(coco / "s.png", coco / "c.json", "cup")
    with pytest.raises(FewShotError, match="c.json goes with the path of its picture"):
        predictor.add_support(image, coco / "c.json", "pan")


def test_a_threshold_of_its_own(monkeypatch, weight, place):
    words = ("--supports", place / "supports", "--query", place / "photos" / "a.jpg")
    predictor = FewShotPredictor(untrained(small_config()), small_config(), "cpu")
    predictor.add_supports(place / "supports")
    scores = class_scores(predictor.predict(place / "photos" / "a.jpg").probabilities)
    value = round(float(np.quantile(scores.max(0), 0.8)), 3)
    for threshold in ((), ("--threshold", value)):
        call(monkeypatch, weight, *words, *threshold, "--output", place / "out")
        # A threshold is a setting: the second call makes its results anew.
        assert (
            json.loads((place / "out" / "summary.json").read_text())["kept_from_earlier_call"] == 0
        )
        labels = np.array(Image.open(place / "out" / "labels" / "a.png"))
        limit = value if threshold else 0.5
        # Without --threshold the model decides on log-odds: the same up to rounding.
        levels = np.sort(np.stack([*scores, np.full_like(scores[0], limit)]), axis=0)
        clear = (levels[-1] - levels[-2] > 1e-6) | bool(threshold)
        assert clear.mean() > 0.99
        np.testing.assert_array_equal(labels[clear], labels_at(scores, limit)[clear])
    assert 0 < (labels > 0).mean() < 0.3
    for text in ("0", "1", "-0.5", "half", "nan"):
        with pytest.raises(FewShotError, match=f"--threshold {text}: a threshold lies between"):
            predict.parse(["--query", "x", "--output", "y", f"--threshold={text}"])


def test_edges_of_the_picture_where_asked_for(monkeypatch, weight, place):
    """By default for the model that ships alone; masks made with and without are not mixed up."""
    out = place / "out"
    arguments = ("--supports", place / "supports", "--query", place / "photos/a.jpg",
                 "--output", out)  # fmt: skip
    found = {}
    for words in ((), ("--refine",), ("--no-refine",)):
        call(monkeypatch, weight, *arguments, *words)
        found[words] = np.array(Image.open(out / "labels" / "a.png"))
    assert np.array_equal(found[()], found["--no-refine",])
    expected = refined(read_image(place / "photos/a.jpg"), found[()])
    assert np.array_equal(found["--refine",], expected) and (expected != found[()]).any()


def test_which_mask_goes_with_which_picture_is_part_of_what_a_result_is_of(place):
    """Two supports whose boxes change places are other supports, though the files are the same."""
    one, other = (place / "supports" / "mug" / f"{n}.jpg" for n in (0, 1))

    def name(first: Path, second: Path) -> str:
        boxes = ("box:1,1,30,30", "box:20,20,60,60", "box:5,5,40,40")
        pairs = zip((one, first, second), boxes, strict=True)
        return predict.fingerprint([Support(p, box, "x") for p, box in pairs], [], {})

    assert len({name(one, other), name(other, one), name(other, other)}) == 3
    assert name(one, other) == name(one, other)


def test_support_folders(place):
    for number in range(2):
        image, mask = disc((50, 60), number)
        write(place / "apart" / "cup" / "images" / f"{number}.png", image)
        write(place / "apart" / "cup" / "masks" / f"{number}.png", mask)
    found, _ = predict.supports_in(place / "apart")
    assert [(s.image.parent.name, Path(s.mask).parent.name) for s in found] == [
        ("images", "masks")
    ] * 2
    (place / "apart" / "cup" / "masks" / "1.png").unlink()
    with pytest.raises(FewShotError, match="1.png has no mask"):
        predict.supports_in(place / "apart")
    with pytest.raises(FewShotError, match="deep: 1 picture .c.jpg. lies beside the class folders"):
        predict.supports_in(place / "photos" / "deep")
    with pytest.raises(FewShotError, match="there is no folder .*nowhere"):
        predict.supports_in(place / "nowhere")


def test_query_names(place):
    write(place / "photos" / "a.png", disc((30, 30), 0)[0])
    queries, _ = predict.find_queries([str(place / "photos")])
    assert list(queries) == ["a_jpg", "a_png", "b", "deep/c"]
    (place / "more").mkdir()
    write(place / "more" / "b.png", disc((30, 30), 0)[0])
    with pytest.raises(FewShotError, match="share the name b_png"):
        predict.find_queries([str(place / "photos"), str(place / "more")])
    with pytest.raises(FewShotError, match="no picture"):
        predict.find_queries([str(place / "*.gif")])


def test_bad_pictures_are_left_out_and_named(weight, place):
    (place / "photos" / "aa.jpg").write_bytes(b"\xff\xd8 cut short")
    words = [sys.executable, "predict.py", "--weight", weight, "--supports", place / "supports",
             "--query", place / "photos", "--output", place / "out", "--device", "cpu"]  # fmt: skip
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: 1 of 4 pictures were left out") and "aa.jpg" in last
    assert "Traceback" not in done.stderr
    summary = json.loads((place / "out" / "summary.json").read_text())
    assert len(summary["pictures"]) == 3 and len(summary["failed"]) == 1


def test_summary_and_levels_are_those_of_the_plain_formulas(tmp_path):
    rng = np.random.default_rng(0)
    odds = rng.normal(size=(3, 37, 51)).astype(np.float32)
    probabilities = np.exp(odds) / np.exp(odds).sum(0)
    mask = np.zeros((37, 51), np.uint8)
    mask[5:30, 7:40] = rng.integers(0, 2, (25, 33))
    result = Prediction(mask, probabilities, ("mug", "lamp"), {}, {"mug": [], "lamp": []})
    found = summarise(Path("q.jpg"), result)["classes"]
    rows, columns = np.nonzero(mask == 1)
    assert found["lamp"] == {"pixels": 0, "fraction": 0.0}
    assert found["mug"] == {
        "pixels": rows.size,
        "fraction": rows.size / mask.size,
        "box": [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1],
        "probability": float(probabilities[1][rows, columns].mean()),
    }
    write_results(tmp_path, "q", disc((37, 51), 0)[0], result)
    for number, name in enumerate(result.classes, start=1):
        levels = np.asarray(Image.open(tmp_path / f"probabilities/q/{number}_{name}.png"))
        np.testing.assert_array_equal(levels, np.rint(probabilities[number] * 255))


@pytest.mark.skipif(not COCO.is_dir(), reason="needs ../shared/data/coco128")
@pytest.mark.parametrize("shots", [1, 3, 5])
def test_real_pictures(monkeypatch, weight, tmp_path, shots):
    """COCO polygons of two classes as supports, one to five shots, real pictures as queries."""
    annotations = COCO / "annotations" / "instances_train2014.json"
    content = json.loads(annotations.read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    files = {i["id"]: COCO / "train2014" / i["file_name"] for i in content["images"]}
    arguments = []
    for wanted in ("person", "bowl"):
        large = dict.fromkeys(
            a["image_id"]
            for a in content["annotations"]
            if names[a["category_id"]] == wanted and not a["iscrowd"] and a["area"] > 1000
        )
        assert len(large) >= shots
        for image_id in list(large)[:shots]:
            arguments += ["--support", files[image_id], annotations, wanted]
    queries = sorted((COCO / "val2014").glob("*.jpg"))[:3]
    call(monkeypatch, weight, *arguments, "--query", *queries, "--output", tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {k: v["supports"] for k, v in summary["classes"].items()} == {
        "person": shots,
        "bowl": shots,
    }
    for path in queries:
        label = Image.open(tmp_path / "out" / "labels" / f"{path.stem}.png")
        assert label.size == Image.open(path).size
