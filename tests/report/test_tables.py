"""``python -m util.report``: the right numbers in the right rows, and nothing mixed silently."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training_case import ROOT, environment
from util.report.__main__ import main
from util.report.tables import comma_separated, gather, markdown, published, with_published
from util.reproduce.cells import cells_of
from util.reproduce.tables import load_tables
from util.runtime.errors import FewShotError

SETTINGS = {
    "protocol": "bam", "trained_on": None, "val_size": 473, "resized_val": True, "ori_resize": True,
}  # fmt: skip


def result(split: int, miou: float, meta: float | None = None, **changes) -> dict:
    """What test.py writes, as far as the report reads it; ``settings`` are added to the usual."""
    settings = {**SETTINGS, **changes.pop("settings", {})}
    mean = {"miou": miou, "fb_iou": miou + 0.1, "miou_meta": meta, "fb_iou_meta": meta}
    start = {"dataset": "pascal", "arch": "HDMNet", "backbone": "resnet50", "split": split}
    start |= {"shot": 1, "weight": "best.pth", "episodes": 1000, "runs": [{}] * 10, "mean": mean}
    return {**start, "parameters": 4161734, "folds": 4, "settings": settings, **changes}


def save(exp: Path, content: dict, name: str = "result.json", run: str = "") -> Path:
    """Write a result to where test.py puts it."""
    other = content.get("settings", SETTINGS)["trained_on"]
    data_set = f"{content['dataset']}_from_{other}" if other else content["dataset"]
    parts = (data_set, content["arch"], f"split{content['split']}", content["backbone"])
    path = exp.joinpath(*parts, f"{content['shot']}shot", run, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def shown(exp: Path) -> list[list[str]]:
    """The cells of all table rows of the Markdown, headlines of the tables as rows of one cell."""
    text = markdown(with_published(gather(exp)[0]))
    lines = [line for line in text.split("\n") if line.startswith(("| ", "## "))]
    rows = [[cell.strip() for cell in line.strip("|# ").split(" | ")] for line in lines]
    return [row for row in rows if not row[-1].startswith("---")]


def test_models_side_by_side_with_the_paper(tmp_path):
    for split in range(4):
        save(tmp_path, result(split, 0.60 + split / 100, 0.5))
        hsnet = {"arch": "HSNet", "parameters": 2573794}
        own = {"protocol": "hsnet", "val_size": 400, "ori_resize": False}
        save(tmp_path, result(split, 0.4 + split / 100, settings=own, **hsnet))
    usual = "protocol bam, 473², original size, 1,000 × 10 episodes"
    rows = shown(tmp_path)
    published = {(row[0], row[1]): row[6] for row in rows if row[-1] == "as published"}
    assert published == {
        ("HDMNet (paper)", "resnet50"): "69.40", ("HDMNet (paper)", "vgg16"): "65.10",
        ("HSNet (paper)", "resnet50"): "64.00", ("HSNet (paper)", "resnet101"): "66.20",
        ("HSNet (paper)", "vgg16"): "59.70",
    }  # fmt: skip
    assert [row for row in rows if row[1:2] in ([], ["backbone"], ["resnet50"])] == [
        ["pascal, 1 shot"],
        ["model", "backbone", "fold 0", "fold 1", "fold 2", "fold 3", "mean", "FB-IoU",
         "parameters", "setting"],
        ["HDMNet (paper)", "resnet50", "-", "-", "-", "-", "69.40", "-", "-", "as published"],
        ["HDMNet", "resnet50", "60.00", "61.00", "62.00", "63.00", "61.50", "71.50", "4,161,734",
         usual],
        ["HDMNet, meta", "resnet50", *["50.00"] * 6, "4,161,734", usual],
        ["HSNet (paper)", "resnet50", "-", "-", "-", "-", "64.00", "-", "-", "as published"],
        ["HSNet", "resnet50", "40.00", "41.00", "42.00", "43.00", "41.50", "51.50", "2,573,794",
         "protocol hsnet, 400², input size, 1,000 × 10 episodes"],
    ]  # fmt: skip


def test_each_data_set_and_shot_has_its_table(tmp_path):
    save(tmp_path, result(0, 0.5))
    save(tmp_path, result(0, 0.5, shot=5))
    save(tmp_path, result(0, 0.5, dataset="coco"))
    save(tmp_path, result(0, 0.5, shot=10))
    save(tmp_path, result(0, 0.5, settings={"trained_on": "coco"}))
    save(tmp_path, result(0, 0.5, dataset="fss", folds=1))
    rows = shown(tmp_path)
    titles = [row[0] for row in rows if len(row) == 1]
    assert titles == [
        "coco, 1 shot", "fss, 1 shot", "pascal, 1 shot", "pascal, 5 shot", "pascal, 10 shot",
        "pascal from coco, 1 shot",
    ]  # fmt: skip
    # published: none for 10 shots and none for models of another data set
    means = [row[-4] for row in rows if row[0] == "HDMNet (paper)"]
    assert means == ["50.00", "45.90", "69.40", "65.10", "71.80", "69.30"]
    means = [row[-4] for row in rows if row[0] == "HSNet (paper)"]
    assert means == ["41.20", "39.20", "86.50", "85.50", "82.30",
                     "66.20", "64.00", "59.70", "70.40", "69.50", "64.10"]  # fmt: skip
    (single,) = [row for row in rows if len(row) == 7 and row[0] == "HDMNet"]
    assert single[2:5] == ["50.00", "50.00", "60.00"], "one fold of one is its mean"


def test_a_mean_needs_every_fold(tmp_path):
    for split in (0, 3):
        save(tmp_path, result(split, 0.5 + split / 10, dataset="demo"))
    (row,) = [row for row in shown(tmp_path) if row[0] == "HDMNet"]
    assert row[2:8] == ["50.00", "-", "-", "80.00", "2 of 4 folds", "75.00 (2 of 4 folds)"]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"settings": {"protocol": "hsnet"}}, "protocol hsnet"),
        ({"settings": {"val_size": 400}}, "400²"),
        ({"settings": {"ori_resize": False}}, "input size"),
        ({"settings": {"resized_val": False}}, "padded"),
        ({"settings": {"use_split_coco": False}}, "use_split_coco False"),
        ({"settings": {"stages": 2}}, "stages 2"),
        ({"episodes": 10000}, "10,000 × 10 episodes"),
        ({"runs": [{}] * 3}, "1,000 × 3 episodes"),
        ({"classes_from": "DATA.folds"}, "classes from DATA.folds"),
        ({"parameters": 7}, ""),
        ({"backbone": "resnet101"}, ""),
    ],
)
def test_other_settings_are_rows_of_their_own(tmp_path, changes, words):
    for split in range(3):
        save(tmp_path, result(split, 0.5))
    save(tmp_path, result(3, 0.9, **changes))
    rows = [row for row in shown(tmp_path) if row[0] == "HDMNet"]
    assert sorted(row[6] for row in rows) == ["1 of 4 folds", "3 of 4 folds"]
    assert words in next(row for row in rows if row[5] == "90.00")[-1]


def test_named_runs_and_other_file_names_are_rows_of_their_own(tmp_path):
    for split in range(4):
        save(tmp_path, result(split, 0.5))
        save(tmp_path, result(split, 0.6), run="no_blur")
        save(tmp_path, result(split, 0.7), name="late.json")
        (tmp_path / f"mine_fold{split}.json").write_text(json.dumps(result(split, 0.8)))
    rows = {row[6]: row[-1] for row in shown(tmp_path) if row[0] == "HDMNet"}
    assert [rows[mean].split(",")[0] for mean in ("50.00", "60.00", "70.00", "80.00")] == [
        "protocol bam", "no_blur", "late", "mine_fold*",
    ]  # fmt: skip


def test_records_and_swapped_supports_are_passed_over(tmp_path):
    save(tmp_path, result(0, 0.5))
    save(tmp_path, {**result(0, 0.1), "swapped_supports": True}, "swapped.json")
    for name in ("result_run.json", "run.json"):
        save(tmp_path, result(0, 0.2), name)
    assert len([row for row in shown(tmp_path) if row[0] == "HDMNet"]) == 1
    assert gather(tmp_path)[1] == []


def test_a_result_without_settings_is_shown_and_says_so(tmp_path):
    content = result(1, 0.5)
    for key in ("settings", "parameters", "folds"):
        del content[key]
    save(tmp_path, content)
    (row,) = [row for row in shown(tmp_path) if row[0] == "HDMNet"]
    assert row[-2:] == ["-", "setting not stated, 1,000 × 10 episodes"]


BROKEN = {
    "cut off": '{"dataset": "pas',
    "not text": b"\xff\xfe\x00",
    "too deep": "[" * 200_000,
    "a list": "[1, 2]",
    "foreign": '{"pictures": 3}',
    "no split": json.dumps(result(0, 0.5) | {"split": None}),
    "truth as number": json.dumps(result(0, 0.5) | {"shot": True}),
    "split beyond its folds": json.dumps(result(4, 0.5)),
    "per cent": json.dumps(result(0, 50.0)),
    "NaN": json.dumps(result(0, float("nan"))),
    "runs": json.dumps(result(0, 0.5) | {"runs": 10}),
    "settings": json.dumps(result(0, 0.5) | {"settings": [1]}),
}


def test_files_that_are_no_results_are_named_and_left_out(tmp_path, capsys):
    for name, content in BROKEN.items():
        path = tmp_path / f"{name}.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FewShotError, match="no result of test.py below"):
        main(["--exp", str(tmp_path)])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(BROKEN)
    for line, name in zip(lines, sorted(BROKEN), strict=True):
        assert line.startswith(f"warning: {tmp_path}/{name}.json") and line.endswith("; left out")
    save(tmp_path, result(0, 0.5))
    main(["--exp", str(tmp_path)])
    assert "## pascal, 1 shot" in capsys.readouterr().out


def test_a_second_result_for_one_cell_is_named(tmp_path):
    kept = save(tmp_path, result(0, 0.5))
    second = kept.parents[1] / "result.json"
    second.write_text(json.dumps(result(0, 0.7)))
    tables, (problem,) = gather(tmp_path)
    assert str(second) in problem and "fold 0" in problem
    assert "50.00" in markdown(tables) and "70.00" not in markdown(tables)


def test_no_folder_and_no_result_are_one_sentence(tmp_path):
    with pytest.raises(FewShotError, match="nowhere is no folder"):
        main(["--exp", str(tmp_path / "nowhere")])
    with pytest.raises(FewShotError, match="no result of test.py below"):
        main(["--exp", str(tmp_path)])
    save(tmp_path, result(0, 0.5))
    with pytest.raises(FewShotError, match="cannot write"):
        main(["--exp", str(tmp_path), "--output", "/dev/null/report"])


def test_names_from_files_cannot_break_the_table(tmp_path):
    save(tmp_path, result(0, 0.5, dataset="a|b\n# c", backbone="\x1b[31mred"))
    text = markdown(gather(tmp_path)[0])
    assert "## a\\|b # c, 1 shot" in text and "\x1b" not in text


def test_csv_has_every_row_and_empty_cells(tmp_path):
    for split in range(4):
        save(tmp_path, result(split, 0.5, dataset="coco"))
    save(tmp_path, result(1, 0.25, shot=5))
    text = comma_separated(with_published(gather(tmp_path)[0]))
    rows = list(csv.DictReader(io.StringIO(text)))
    coco, pascal = (
        next(r for r in rows if r["model"] == "HDMNet" and r["data_set"] == d)
        for d in ("coco", "pascal")
    )
    assert (coco["mean"], coco["fb_iou"], coco["folds_present"]) == ("50.0000", "60.0000", "4")
    assert (pascal["fold0"], pascal["fold1"], pascal["mean"]) == ("", "25.0000", "")
    assert (pascal["shot"], pascal["folds_present"], pascal["folds"]) == ("5", "1", "4")
    assert coco["parameters"] == "4161734"
    paper = [r["mean"] for r in rows if r["model"] == "HDMNet (paper)"]
    assert paper == ["50.0000", "45.9000", "71.8000", "69.3000"]


def test_the_command_writes_three_files(tmp_path):
    for split in range(4):
        save(tmp_path / "exp", result(split, 0.6, 0.5))
    save(tmp_path / "exp", result(0, 0.6, dataset="$x^2", shot=5))
    (tmp_path / "exp" / "broken.json").write_text("{")
    command = [sys.executable, "-m", "util.report", "--exp", tmp_path / "exp"]
    done = subprocess.run([*command, "--output", tmp_path / "r"], cwd=ROOT, env=environment(),
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("warning: ") and "broken.json" in done.stderr
    assert done.stderr.count("\n") == 1
    written = (tmp_path / "r" / "report.md").read_text()
    assert done.stdout.startswith(written) and "| 60.00 |" in written
    assert (tmp_path / "r" / "report.csv").read_text().startswith("data_set,shot,model")
    assert (tmp_path / "r" / "report.png").read_bytes().startswith(b"\x89PNG")


def test_generalized_scores_are_a_column_where_there_are_any(tmp_path):
    """Base, novel and all classes in one labelling; a mean over the folds that say so."""
    for split in range(4):
        content = result(split, 0.6)
        content["mean"] |= {"gfss_base": 0.7, "gfss_novel": 0.2 + split / 10, "gfss_all": 0.5}
        save(tmp_path, content)
    save(tmp_path, result(0, 0.4, backbone="vgg16"))
    (tmp_path / "cost.json").write_text("{}")  # what a table's costs are kept in
    tables, problems = gather(tmp_path)
    assert problems == []
    rows = shown(tmp_path)
    place = rows[1].index("GFSS base / novel / all")
    found = {(row[0], row[1]): row[place] for row in rows[2:]}
    assert found["HDMNet", "resnet50"] == "70.00 / 35.00 / 50.00"
    assert found["HDMNet", "vgg16"] == found["HSNet (paper)", "resnet50"] == "-"
    lines = list(csv.DictReader(io.StringIO(comma_separated(tables))))
    novel = {line["backbone"]: line["gfss_novel"] for line in lines}
    assert novel == {"resnet50": "35.0000", "vgg16": ""}


def test_published_means_are_those_of_the_papers_tables():
    found = published()
    assert found["coco"]["HDMNet", "resnet50"] == {1: 50.0, 5: 56.0}
    assert found["pascal"]["HSNet", "resnet101"] == {1: 66.2, 5: 70.4}
    assert found["fss"]["HSNet", "vgg16"] == {1: 82.3, 5: 85.8}
    assert ("HDMNet", "vgg16") in found["pascal"] and "demo" not in found


def test_two_tables_quote_the_same_number_for_one_row():
    """HDMNet's paper says 69.4 in its Table 2 and 69.5, of rounded folds, in its supplement."""
    quoted: dict = {}
    for table in load_tables().values():
        for cell in cells_of(table):
            for column, number in cell.row.published.items():
                if column.shot == cell.shot:
                    quoted.setdefault((cell.result, column), set()).add(number)
    assert max(max(numbers) - min(numbers) for numbers in quoted.values()) < 0.11
    assert published()["pascal"]["HDMNet", "resnet50"][1] == 69.4
