"""Which pictures predict.py asks about, and whose results its folder holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import predict
from tests.own_pictures import disc, small_config, untrained, write
from util.predict.files import claim, find_queries
from util.predict.predictor import FewShotPredictor, Prediction
from util.runtime.errors import FewShotError

NOT_UTF8 = os.fsdecode(b"caf\xe9")


@pytest.fixture(scope="module")
def weight(tmp_path_factory) -> Path:
    cfg = small_config()
    path = tmp_path_factory.mktemp("weights") / "best.pth"
    torch.save({"model": untrained(cfg).state_dict(), "config": cfg.to_dict()}, path)
    return path


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """Two classes of supports, two queries; predictions without the network."""

    def blank(self, image):
        shape = (1 + len(self.classes), *np.asarray(image).shape[:2])
        maps = {name: [np.zeros((4, 4), np.float32)] for name in self.classes}
        return Prediction(
            np.zeros(shape[1:], np.uint8), np.ones(shape, np.float32), self.classes, {}, maps
        )

    monkeypatch.setattr(FewShotPredictor, "predict", blank)
    for number, name in enumerate(("mug", NOT_UTF8)):
        image, mask = disc((70, 80), number)
        write(tmp_path / "1.jpg", image).replace(moved(tmp_path / "supports" / name / "1.jpg"))
        write(tmp_path / "1.png", mask * 255).replace(moved(tmp_path / "supports" / name / "1.png"))
    for name in ("a", "b"):
        write(tmp_path / "photos" / f"{name}.jpg", disc((40, 50), 7)[0])
    return tmp_path


def moved(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def call(monkeypatch, weight, place, output, *more, query="photos"):
    words = ["predict.py", "--weight", weight, "--device", "cpu", "--query", place / query,
             "--output", output, *(more or ("--supports", place / "supports"))]  # fmt: skip
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    predict.main()
    return json.loads((Path(output) / "summary.json").read_text())


def names(queries) -> list[str]:
    return list(queries[0])


# ---------------------------------------------------------------------------- queries


@pytest.mark.parametrize("inside", ["result", "deep/er", "."])
def test_results_in_the_searched_folder_are_no_queries(monkeypatch, weight, place, capsys, inside):
    out = place / "photos" / inside
    for run in (1, 2, 3):
        found = call(monkeypatch, weight, place, out)
        assert [Path(p["file"]).name for p in found["pictures"]] == ["a.jpg", "b.jpg"]
        assert ("results, not queries:" in capsys.readouterr().err) == (run > 1)
    # Neither for a call that writes elsewhere, nor for a glob.
    assert names(find_queries([str(place / "photos")], place / "other")) == ["a", "b"]
    pattern = str(place / "photos" / "**" / "*")
    queries, passed = find_queries([pattern], place / "other")
    assert list(queries) == ["a", "b"] and passed
    with pytest.raises(FewShotError, match="results of predict.py are no queries"):
        find_queries([str(out / "overlays")], out)


def test_hidden_files_and_folders_are_no_queries(place):
    for name in (".thumbs/a.jpg", "__MACOSX/b.jpg", "._a.jpg", "c.JPG"):
        write(place / "x.jpg", disc((9, 9), 0)[0]).replace(moved(place / "photos" / name))
    assert names(find_queries([str(place / "photos")])) == ["a", "b", "c"]


# ---------------------------------------------------------------------------- results


def test_pictures_of_other_kinds_are_named(tmp_path):
    for name in ("a.jpg", "b.heic", "c/d.GIF"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    queries, passed = find_queries([str(tmp_path)])
    assert list(queries) == ["a"] and passed == [tmp_path / "b.heic", tmp_path / "c/d.GIF"]
    assert find_queries([str(tmp_path / "*")])[1] == [tmp_path / "b.heic"]
    assert list(find_queries([str(tmp_path / "c/d.GIF")])[0]) == ["d"]
    with pytest.raises(FewShotError, match="d.GIF is of a kind to be named itself"):
        find_queries([str(tmp_path / "c")])


def test_files_of_a_class_that_was_removed_go(monkeypatch, weight, place):
    out = place / "out"
    both = call(monkeypatch, weight, place, out)
    assert list(both["classes"]) == [NOT_UTF8, "mug"]  # read back as it is called
    mug = ("--support", place / "supports/mug/1.jpg", place / "supports/mug/1.png", "mug")
    one = call(monkeypatch, weight, place, out, *mug)
    assert list(one["classes"]) == ["mug"] and one["kept_from_earlier_call"] == 0
    listed = {out / file for picture in one["pictures"] for file in picture["results"]}
    there = {p for part in ("labels", "overlays", "probabilities", "correlations")
             for p in (out / part).rglob("*") if p.is_file()}  # fmt: skip
    assert there == listed


def test_another_calls_results_are_not_mixed_with(monkeypatch, weight, place):
    out = place / "out"
    call(monkeypatch, weight, place, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    write(place / "more" / "c.jpg", disc((30, 30), 1)[0])
    mug = ("--support", place / "supports/mug/1.jpg", place / "supports/mug/1.png", "mug")
    with pytest.raises(FewShotError, match="holds results of 2 other picture.* another --output"):
        call(monkeypatch, weight, place, out, *mug, query="more")
    write(place / "more" / "a.jpg", disc((30, 30), 2)[0])
    with pytest.raises(FewShotError, match="photos/a.jpg under the name a, which .*more/a.jpg"):
        call(monkeypatch, weight, place, out, query="more")
    assert {path: path.read_bytes() for path in before} == before
    # The same supports, weights and settings may be asked about more pictures.
    (place / "more" / "a.jpg").unlink()
    assert len(call(monkeypatch, weight, place, out, query="more")["pictures"]) == 1
    assert call(monkeypatch, weight, place, out)["kept_from_earlier_call"] == 2


def test_a_picture_that_is_gone_is_left_out(monkeypatch, weight, place, capsys):
    """... also where a link to it stands, and results of it lie there."""
    out, link = place / "out", place / "photos" / "link.jpg"
    target = write(place / "elsewhere.jpg", disc((30, 30), 1)[0])
    link.symlink_to(target)
    assert len(call(monkeypatch, weight, place, out)["pictures"]) == 3
    target.unlink()
    with pytest.raises(FewShotError, match=r"1 of 3 pictures were left out.*link\.jpg"):
        call(monkeypatch, weight, place, out)
    write(target, disc((30, 30), 1)[0])
    assert call(monkeypatch, weight, place, out)["kept_from_earlier_call"] == 2


def test_a_picture_replaced_while_it_is_predicted_is_asked_about_again(monkeypatch, weight, place):
    out, changed, predict_one = place / "out", place / "photos" / "a.jpg", FewShotPredictor.predict

    def slowly(self, image):
        result = predict_one(self, image)
        if not changed.with_name("was").exists():
            changed.rename(changed.with_name("was"))
            write(changed, disc((44, 55), 7)[0])
        return result

    monkeypatch.setattr(FewShotPredictor, "predict", slowly)
    call(monkeypatch, weight, place, out)
    assert call(monkeypatch, weight, place, out)["kept_from_earlier_call"] == 1


def test_folders_of_the_user_are_not_written_into(monkeypatch, weight, place):
    write(place / "photos" / "labels" / "mine.png", disc((9, 9), 0)[0])
    with pytest.raises(FewShotError, match="photos/labels is not of predict.py"):
        call(monkeypatch, weight, place, place / "photos")
    assert sorted(p.name for p in (place / "photos").iterdir()) == ["a.jpg", "b.jpg", "labels"]


def test_two_calls_do_not_write_into_one_folder(monkeypatch, weight, place):
    out = place / "out"
    code = (
        "import sys; from pathlib import Path; from util.predict.files import claim\n"
        "held = claim(Path(sys.argv[1]), {}, 'x'); print('held', flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(FewShotError, match="in use by a run that is still going .process"):
            call(monkeypatch, weight, place, out)
    finally:
        other.communicate("\n", timeout=60)
    assert len(call(monkeypatch, weight, place, out)["pictures"]) == 2


def test_damaged_summaries_are_made_anew(monkeypatch, weight, place):
    out = place / "out"
    for damage in (
        "",
        "[]",
        '{"file": 1}',
        '{"file": "x", "run": "y", "stamp": [], "results": [1]}',
    ):
        call(monkeypatch, weight, place, out)
        (out / "summary" / "a.json").write_text(damage)
        assert call(monkeypatch, weight, place, out)["kept_from_earlier_call"] == 1


def test_names_that_are_not_utf8(monkeypatch, weight, place, capsys):
    (place / "photos" / "a.jpg").rename(place / "photos" / f"{NOT_UTF8}.jpg")
    (place / "photos" / f"x{NOT_UTF8}.jpg").write_bytes(b"no picture")
    with pytest.raises(FewShotError, match=r"1 of 3 pictures were left out.*xcaf\\xe9.jpg"):
        call(monkeypatch, weight, place, place / "out")
    summary = json.loads((place / "out" / "summary.json").read_text(encoding="utf-8"))
    files = [Path(entry["file"]).name for entry in summary["pictures"]]
    assert files == ["b.jpg", f"{NOT_UTF8}.jpg"]
    assert (place / "out" / "labels" / f"{NOT_UTF8}.png").is_file()
    assert list(summary["failed"]) == [str(place / "photos" / f"x{NOT_UTF8}.jpg")]


def test_claim_needs_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FewShotError, match="cannot make the folder"):
        claim(tmp_path / "file", {}, "x")
