"""List files as people and other programs write them: paths, repeated lines, the cached scan."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.own_pictures import ROOT
from util.config import load_config
from util.data.episodes import EpisodeSampler
from util.data.index import build_index, select
from util.data.sources import _LISTS, Pair, Source, read_list
from util.lists import main
from util.runtime.errors import FewShotError


@pytest.fixture
def root(tmp_path) -> Path:
    """Eight pictures in the folder of a user, i/N.jpg and m/N.png; class 1 or 2 in turns."""
    data = tmp_path / "home" / "d"
    for number in range(8):
        mask = np.zeros((20, 30), np.uint8)
        mask[5:15, 5:20] = number % 2 + 1
        for name, array in (
            (f"i/{number}.jpg", np.full((20, 30, 3), number)),
            (f"m/{number}.png", mask),
        ):
            path = data / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(path)
    return data


LINES = [(f"i/{n}.jpg", f"m/{n}.png") for n in range(8)]


def configure(root: Path, lines, *overrides):
    place = root.parent.parent
    (place / "l.txt").write_text("".join(f"{image}\t{mask}\n" for image, mask in lines))
    (place / "l.yaml").write_text(
        f"DATA:\n  data_set: mine\n  data_root: {root}\n  train_list: {place}/l.txt\n"
        f"  val_list: {place}/l.txt\n  class_names: [a, b]\n  folds: [[a], [b]]\n"
        f"  protocol: pfenet\n  min_pixels: 50\nTRAIN:\n  exp_root: {place}/exp\n"
    )
    return load_config(place / "l.yaml", list(overrides))


def slashed(name):
    return f"/{name}"


def backslashed(name):
    return name.replace("/", "\\")


# ---------------------------------------------------------------------------- paths


@pytest.mark.parametrize("spell", [slashed, backslashed, lambda n: backslashed(slashed(n)),
                                   lambda n: f"~/d/{n}", lambda n: f"./x/../{n}"])  # fmt: skip
@pytest.mark.parametrize("outside", [False, True])
def test_paths_of_other_programs_lead_to_the_same_files(root, monkeypatch, spell, outside):
    monkeypatch.setenv("HOME", str(root.parent))
    cfg = configure(root, [tuple(map(spell, pair)) for pair in LINES], "data_root", "~/d",
                    "allow_outside_root", outside)  # fmt: skip
    index = build_index(cfg, "val")
    assert [pair.image for pair in index.pairs] == [root / image for image, _ in LINES]


def test_a_file_of_that_very_name_comes_first(root):
    (root / "i\\0.jpg").write_bytes((root / "i/1.jpg").read_bytes())
    with pytest.raises(FewShotError, match=r"line 1: 'i\\\\0.jpg' may be .*: remove one"):
        build_index(configure(root, [("i\\0.jpg", "m/0.png")]), "val")
    (root / "i/0.jpg").unlink()
    index = build_index(configure(root, [("i\\0.jpg", "m/0.png")]), "val")
    assert index.pairs[0].image == root / "i\\0.jpg"


def test_a_slash_that_leads_nowhere_says_both_places(root):
    with pytest.raises(
        FewShotError, match="leaves DATA.data_root .*, and there is no .*/d/i/9.jpg"
    ):
        build_index(configure(root, [("/i/9.jpg", "/m/9.png")]), "val")


@pytest.mark.parametrize("data_root", ["..", "../..", "../../a", ".", "c/..", "c/../.."])
def test_no_spelling_of_the_root_lets_a_line_leave_it(tmp_path, monkeypatch, data_root):
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "l.txt").write_text("../secret/1.png ../secret/1.png\n")
    monkeypatch.chdir(tmp_path / "a" / "b")
    with pytest.raises(FewShotError, match="leaves DATA.data_root"):
        read_list(tmp_path / "l.txt", data_root)
    (pair,) = read_list(tmp_path / "l.txt", data_root, allow_outside=True)
    assert not pair.image.resolve().is_relative_to(Path(data_root).resolve())


# ---------------------------------------------------------------------------- repeated lines


def supports_that_are_the_query(index, shot=1):
    sampler = EpisodeSampler(index, [1], shot, 510)
    episodes = [sampler.episode(0, number) for number in range(100)]
    files = [
        [os.stat(index.pairs[p].image).st_ino for p in (e.query, *e.supports)] for e in episodes
    ]
    return sum(len(set(pictures)) <= shot for pictures in files)


def test_lines_listed_twice_are_said_once_and_never_support_themselves(root, caplog):
    assert not supports_that_are_the_query(build_index(configure(root, LINES), "val"))
    assert "listed" not in caplog.text
    os.link(root / "i/0.jpg", root / "i/hard.jpg")
    (root / "soft").symlink_to(root / "i")
    again = [*LINES, *LINES, ("i/hard.jpg", "m/0.png"), ("soft/2.jpg", "m/2.png")]
    index = build_index(configure(root, again), "val")
    assert caplog.text.count("listed twice or more") == 1
    assert "8 picture(s)" in caplog.text and "10 line(s) too many" in caplog.text
    assert index.entries == [0, 2, 4, 6] and index.per_class == {1: [0, 2, 4, 6]}
    for shot in (1, 3):
        assert not supports_that_are_the_query(index, shot)
    with pytest.raises(FewShotError, match="10 bad"):
        main(["--config", str(root.parent.parent / "l.yaml"), "--check"])


@settings(max_examples=100, deadline=None)
@given(
    lines=st.lists(st.tuples(st.integers(0, 3), st.dictionaries(st.integers(1, 3),
                   st.integers(1, 99), max_size=3)), max_size=9),
    mode=st.sampled_from(["train", "val"]),
    protocol=st.sampled_from(["bam", "pfenet", "hsnet"]),
)  # fmt: skip
def test_a_picture_stands_once_for_a_class_whatever_its_masks_show(lines, mode, protocol):
    cfg = load_config("config/demo/demo_split0_resnet18.yaml").replace(
        data_set="mine", class_names=["a", "b", "c"], folds=[["a", "b"]], min_pixels=50,
        protocol=protocol,
    )  # fmt: skip
    pairs = [Pair(Path(f"{p}.jpg"), Path(f"{n}.png")) for n, (p, _) in enumerate(lines)]
    index = select(cfg, cfg.fold, mode, Source(pairs, "l", Path("c")), [c for _, c in lines])
    owners: dict[tuple[int, int], int] = {}
    shown = [(p, c) for p, classes in index.present.items() for c in classes]
    shown += [(p, c) for c, places in index.per_class.items() for p in places]
    for position, class_id in shown:
        assert owners.setdefault((lines[position][0], class_id), position) == position
    for p, (picture, found) in enumerate(lines):  # none that could be used is lost
        if protocol != "bam" or mode == "val":
            for c in cfg.fold.classes(mode):
                assert found.get(c, 0) < 50 or (picture, c) in owners or p not in index.present


# ---------------------------------------------------------------------------- the cached scan


def test_nothing_is_written_beside_data_that_are_not_the_projects(root):
    place = root.parent.parent
    before = {path for path in place.rglob("*") if ".cache" not in path.parts}
    cfg = configure(root, LINES)
    build_index(cfg, "val")
    folders = cfg.replace(train_list=None, val_list=None, class_names=None, folds=None,
                          data_root=str(root.parent / "f"))  # fmt: skip
    for name in ("jpg", "png"):
        (root.parent / "f" / "a").mkdir(parents=True, exist_ok=True)
        source = root / ("i/0.jpg" if name == "jpg" else "m/0.png")
        (root.parent / "f" / "a" / f"1.{name}").write_bytes(source.read_bytes())
    build_index(folders, "val")
    caches = list((place / "exp" / ".cache").iterdir())
    assert sorted(path.name.split("-")[0] for path in caches) == ["f", "l"]
    new = {path for path in place.rglob("*") if ".cache" not in path.parts} - before
    assert {path.name for path in new} == {"l.txt", "l.yaml", "f", "a", "1.jpg", "1.png", "exp"}


def test_the_scan_of_the_projects_own_list_lies_beside_it(root, monkeypatch):
    assert (ROOT / "lists/README.md").is_file() and _LISTS == ROOT / "lists"
    place = root.parent.parent
    monkeypatch.setattr("util.data.sources._LISTS", place.resolve())
    build_index(configure(root, LINES), "val")
    assert (place / "l.scan.json").is_file() and not (place / "exp").exists()
