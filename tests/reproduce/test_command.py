"""``python -m util.reproduce`` on tiny data, and ``util.report table``: all but the training."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
import torch

from benchmark.cost import cost, parts_of
from model import build_model
from tests.reproduce.small import arguments, commands_in, make_small, write_result
from tests.training_case import ROOT
from util.config import load_config
from util.evaluate.result import settings
from util.report.__main__ import main as report
from util.reproduce import __main__ as command
from util.reproduce.__main__ import main
from util.reproduce.cells import Cell, cells_of
from util.reproduce.steps import _spread, steps_of
from util.reproduce.tables import table_of
from util.runtime.errors import FewShotError, Interrupted
from util.train.checkpoints import FORMAT


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_small(tmp_path)


def other_training(cell: Cell) -> None:
    """Leave the end of a training of other settings in a cell's folder."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    config = cell.train.over(epochs=9).cfg.to_dict()
    state = {"model": {}, "config": config, "complete": True, "effective_batch": 1}
    torch.save({"format": FORMAT, **state}, cell.folder / "last.pth")


def test_a_dry_run_says_what_it_would_do_and_what_that_needs(folder, capsys):
    main(arguments(folder, "--dry-run"))
    said = capsys.readouterr().out
    base, first, test, second, last = (line.split() for line in commands_in(said))
    assert base[1].endswith("train_base.py") and base[2:4] == ["--resume", "auto"]
    assert first[1].endswith("train.py") and test[1].endswith("test.py")
    assert "ensemble" in first and "ensemble" not in second and "matching" not in second
    assert second[1].endswith("train.py") and last[1].endswith("test.py")
    rows = {line.split("  ")[0]: line.split() for line in said.splitlines()}
    assert rows["stage 2"][2] == "2" and rows["stage 1"][2] == "1" and rows["evaluation"][1] == "2"
    assert "in all about" in said and "free" in said
    assert not (folder / "exp").exists()


def test_time_is_not_known_without_the_data(folder, capsys):
    (folder / "made" / "list.txt").unlink()
    main(arguments(folder, "--dry-run"))
    said = capsys.readouterr().out
    assert "not known" in said and "list.txt" in said and "in all an unknown time on" in said


def test_what_there_is(folder, capsys):
    """Tables with the folds that the data have; rows that have no configuration have no cells."""
    table = replace(table_of("hdmnet-table3"), folds=(0, 1))
    write_result(cells_of(table, str(folder / "tiny"))[0], 0.5)
    main(["--data", str(folder / "tiny")])
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert lines["hdmnet-table3"][-4:] == ["10", "1", "0", "0"]
    assert lines["hdmnet-table4"][-4:] == ["8", "0", "0", "0"]
    assert lines["hdmnet-figure1"][-4:] == ["1", "0", "0", "0"]
    assert "hsnet-domain-shift" not in lines
    with pytest.raises(FewShotError, match="nosuch has no configuration"):
        main(["--data", str(folder / "nosuch")])


def test_what_failed_is_counted_by_cells(folder, capsys):
    """A folder with another training, and what is missing for a failure; no note of old."""
    table = replace(table_of("hdmnet-table3"), folds=(0, 1))
    cells = cells_of(table, str(folder / "tiny"))
    of_row = {(cell.row.name, cell.fold): cell for cell in cells}
    done = write_result(of_row["baseline", 0], 0.5)
    done.with_name("result.json.failed").write_text("of yesterday")
    other_training(of_row["+ distillation", 0])
    base = of_row["baseline", 1].base.cfg.exp_dir()
    base.mkdir(parents=True)
    (base / "last.pth.failed").write_text("out of memory")
    main(["--data", str(folder / "tiny")])
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert lines["hdmnet-table3"][-4:] == ["10", "1", "0", "6"], "fold 1, and distillation"
    assert lines["hdmnet-figure4"][-4:] == ["4", "0", "0", "2"], "a training and the picture"


def test_a_signal_ends_a_dry_run_at_once(folder, monkeypatch):
    monkeypatch.setattr(command, "dry_run", lambda _: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            main(arguments(folder, "--dry-run"))
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_folder_for_tables_that_cannot_be_is_told_before_all_work(folder):
    (folder / "file").touch()
    for place in ("file", "file/below"):
        with pytest.raises(FewShotError, match=f"cannot write in {place}: .*file is no folder"):
            main(arguments(folder, "--output", place))
    assert not (folder / "exp").exists()


def test_every_table_is_drawn_and_the_first_error_is_the_one_that_counts(
    folder, monkeypatch, capsys
):
    def stopped(_):
        raise Interrupted("stopped by SIGTERM")

    def draw(name, _):
        drawn.append(name)
        if name == "hdmnet-table3":
            raise FewShotError("no room")

    drawn: list[str] = []
    monkeypatch.setattr(command.Runner, "run", stopped)
    monkeypatch.setattr(command.papers, "draw", draw)
    tables = ["hdmnet-table3", "hdmnet-table4", "--data", str(folder / "tiny"), "--folds", "0"]
    with pytest.raises(Interrupted):
        main(tables)
    assert drawn == ["hdmnet-table3", "hdmnet-table4"]
    assert capsys.readouterr().err == "error: no room\n"


def test_options_that_would_change_a_result_are_refused(folder):
    for words, told in ((["epochs", "1"], "epochs"), (["workers"], "no value")):
        with pytest.raises(FewShotError, match=told):
            main(arguments(folder, "--dry-run", "--opts", *words))
    with pytest.raises(FewShotError, match="nearest: 'baseline'"):
        main(["hdmnet-table3", "--rows", "basline", "--dry-run"])
    with pytest.raises(FewShotError, match=r"folds \[0, 1, 2, 3\], not \[4\]"):
        main(["hdmnet-table3", "--folds", "4", "--dry-run"])
    with pytest.raises(FewShotError, match="nothing of this"):  # not half a picture
        main(["hdmnet-figure1", "--rows", "COCO-20i", "--dry-run"])
    with pytest.raises(FewShotError, match="sync_bn would change"):
        main(arguments(folder, "--dry-run", "--opts", "sync_bn", "False"))
    for name in ("hsnet-domain-shift", "hdmnet-figure1"):
        with pytest.raises(FewShotError, match="data_root would be given to coco and pascal alike"):
            main([name, "--dry-run", "--opts", "workers", "0", "data_root", "x"])
    with pytest.raises(FewShotError, match="two data sets"):
        main(["hsnet-domain-shift", "--data", str(folder / "tiny"), "--dry-run"])


def test_one_array_job_with_stage_one_first(folder, capsys):
    """The script, under a shell whose sbatch and srun only say what they were asked."""
    script = folder / "job.sh"
    main(arguments(folder, "--slurm", str(script), "--gpus", "2"))
    assert "1 tasks of stage 1, 2 others" in capsys.readouterr().out
    assert "#SBATCH --array=0-2\n" in script.read_text()
    assert "#SBATCH --gpus-per-node=2\n#SBATCH --cpus-per-task=16\n" in script.read_text()
    tools = folder / "bin"
    tools.mkdir()
    for name in ("sbatch", "srun", "scontrol"):
        status = 75 if name == "srun" else 0
        (tools / name).write_text(
            f'#!/bin/sh\necho {name} "$@" >> {folder}/log\necho 7\nexit {status}'
        )
        (tools / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    environment.pop("SLURM_ARRAY_TASK_ID", None)
    subprocess.run(["bash", str(script)], env=environment, check=True, cwd=folder)
    environment |= {"SLURM_ARRAY_JOB_ID": "9"}
    for task in ("0", "2", "3"):
        again = {**environment, "SLURM_ARRAY_TASK_ID": task}
        done = subprocess.run(["bash", str(script)], env=again, cwd=folder)
        assert done.returncode == (2 if task == "3" else 75)
    log = (folder / "log").read_text().splitlines()
    assert log[0] == f"sbatch --parsable --array=0-0 {script}"
    assert log[1] == f"sbatch --dependency=afterany:7 --array=1-2 {script}"
    assert log[2].startswith("srun python -m util.reproduce hdmnet-table3 --folds 0")
    assert "--only base" in log[2] and "--gpus 2" in log[2]
    assert log[3] == "scontrol requeue 9_0"
    assert "--rows + correlation --shots 1 --only base train test" in log[4]


def jobs(script: Path, monkeypatch) -> tuple[list[list[str]], list[Path]]:
    """Arguments of the tasks of an array job, and all that they make."""
    made: list[Path] = []
    found = re.findall(r"^\d+\) set -- (.*) ;;$", script.read_text(), re.M)
    tasks = [shlex.split(line) for line in found]
    with monkeypatch.context() as patch:
        patch.setattr(
            command, "dry_run", lambda runner: made.extend(s.output for s in runner.todo())
        )
        for task in tasks:
            main([*task, "--dry-run"])
    return tasks, made


def test_an_array_job_makes_all_that_shares_a_training_folder(tmp_path, monkeypatch, capsys):
    """Rows that are evaluations of one training, and tables of one training."""
    monkeypatch.chdir(tmp_path)
    main(["hdmnet-figure2", "--slurm", "figure.sh"])
    (_, task), made = jobs(tmp_path / "figure.sh", monkeypatch)
    rows = "hdmnet-figure2 --folds 0 --rows '1,000 episodes' '10,000 episodes' --shots 1"
    assert shlex.join(task).startswith(rows)
    assert {cell.result for cell in cells_of(table_of("hdmnet-figure2"))} <= {*made}
    main(["hsnet-coco", "hsnet-domain-shift", "--folds", "0", "--slurm", "both.sh"])
    cells = [*cells_of(table_of("hsnet-coco")), *cells_of(table_of("hsnet-domain-shift"))]
    made = jobs(tmp_path / "both.sh", monkeypatch)[1]
    assert {cell.result for cell in cells if cell.fold == 0} <= {*made}


def test_an_array_job_measures_costs_once_and_where_they_are_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = cells_of(table_of("hdmnet-table4"))
    main(["hdmnet-table4", "--slurm", "job.sh"])
    made = jobs(tmp_path / "job.sh", monkeypatch)[1]
    costs = [path for path in made if path.name == "cost.json"]
    assert sorted(costs) == sorted(cell.cost for cell in cells if cell.fold == 0)
    for cell in cells:
        write_result(cell, 0.5)
    main(["hdmnet-table4", "--slurm", "job.sh", "--output", "drawn"])
    tasks, made = jobs(tmp_path / "job.sh", monkeypatch)
    assert sorted(made) == sorted(costs)
    assert all("measure" in task and task[-2:] == ["--output", "drawn"] for task in tasks)


def test_an_array_job_does_the_steps_that_were_asked_for(folder, capsys):
    script = folder / "job.sh"
    main(arguments(folder, "--slurm", str(script), "--only", "base"))
    assert "--only base --data" in script.read_text() and "train" not in tasks_of(script)
    table = replace(table_of("hdmnet-table3"), folds=(0,))
    other_training(cells_of(table, str(folder / "tiny"))[0])
    main(arguments(folder, "--slurm", str(script)))
    assert "cannot: baseline, fold 0: " in capsys.readouterr().out
    assert "--rows baseline --only base" in tasks_of(script), "stage 1, which both need"
    assert "--rows baseline --shots" not in tasks_of(script)
    assert "--rows '+ correlation' --shots" in tasks_of(script)


def tasks_of(script: Path) -> str:
    return script.read_text().partition("SLURM_ARRAY_TASK_ID in\n")[2].partition("*) echo")[0]


def test_an_array_job_replaces_nothing_else(folder):
    script = folder / "train.sh"
    script.write_text("#!/bin/sh\n")
    with pytest.raises(FewShotError, match=r"train\.sh is there and is no array job"):
        main(arguments(folder, "--slurm", str(script)))
    assert script.read_text() == "#!/bin/sh\n"
    script.unlink()
    for _ in range(2):
        main(arguments(folder, "--slurm", str(script)))


def test_an_array_job_for_machines_without_gpus(folder):
    """A cluster without GPUs refuses a job that names them."""
    script = folder / "job.sh"
    main(arguments(folder, "--slurm", str(script), "--gpus", "0"))
    assert "gpus" not in script.read_text()


def test_published_batches_are_shared_among_gpus():
    table = table_of("hsnet-fss")
    cell = cells_of(table)[0]
    for gpus, processes, batch in ((1, 1, 20), (4, 4, 5), (8, 5, 4)):
        setting, launcher = _spread(cell.train, gpus)
        assert setting.cfg.batch_size == batch
        assert launcher[-1:] == ((f"--nproc_per_node={processes}",) if processes > 1 else ())
    steps = steps_of(table_of("hdmnet-table3"), cells_of(table_of("hdmnet-table3")), Path("x"), 8)
    for step in steps.values():
        if step.kind == "train":
            assert "--nproc_per_node=8" in step.command and "batch_size" not in step.command
        if step.kind == "base":  # 12 pictures, at least two a process for its batch norms
            assert "--nproc_per_node=6" in step.command and "batch_size 2" in step.typed


# ------------------------------------------------------------------------------- the drawn table


def cell_of_row(table, name, fold=0, shot=1, data=None):
    cells = cells_of(table, data)
    return next(c for c in cells if (c.row.name, c.fold, c.shot) == (name, fold, shot))


def lines_of(text: str) -> dict[tuple[str, str], list[str]]:
    """(row, what it is) -> cells of a Markdown table."""
    found, row = {}, ""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| ") and not cells[0].startswith("---"):
            row = cells[0] or row
            found[row, cells[1]] = cells[2:]
    return found


def test_measured_beside_published(tmp_path, monkeypatch, capsys):
    """Only what is measured, whole means, and differences to the same thing."""
    monkeypatch.chdir(tmp_path)
    table = table_of("hdmnet-supplementary1")
    with_mask, without = "COCO-20i, with mask", "COCO-20i, without"
    for fold in range(4):
        write_result(cell_of_row(table, with_mask, fold), 0.44 + fold / 50)
    write_result(cell_of_row(table, without, 1), 0.3)
    report(["table", "hdmnet-supplementary1", "--output", "drawn"])
    found = lines_of(capsys.readouterr().out)
    assert found[with_mask, "measured"] == ["44.00", "46.00", "48.00", "50.00", "47.00"]
    assert found[with_mask, "published"] == ["43.80", "55.30", "51.60", "49.40", "50.00"]
    assert found[with_mask, "difference"] == ["+0.20", "-9.30", "-3.60", "+0.60", "-3.00"]
    assert found[without, "measured"] == ["", "30.00", "", "", ""]
    assert found[without, "difference"] == ["", "-7.70", "", "", ""]
    assert found["PASCAL-5i, without", "measured"] == [""] * 5
    rows = list(csv.DictReader((tmp_path / "drawn/hdmnet-supplementary1.csv").open()))
    measured = [row for row in rows if row["kind"] == "measured"]
    assert len(measured) == 6 and all(row["value"] for row in rows)
    assert (tmp_path / "drawn/hdmnet-supplementary1.md").read_text().startswith("## HDMNet, supp")
    assert cv2.imread(str(tmp_path / "drawn/hdmnet-supplementary1.png")).std() > 5
    with pytest.raises(SystemExit):  # a table is drawn whole
        report(["table", "hdmnet-supplementary1", "--rows", with_mask])


def test_results_of_other_settings_are_not_taken(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cell = cell_of_row(table_of("hdmnet-table3"), "+ distillation")
    changes = (
        {"episodes": 9}, {"weight": "other.pth"}, {"settings": {}}, {"swapped_supports": True},
        {"runs": []}, {"shot": 5}, {"arch": "HSNet"},
    )  # fmt: skip
    for change in changes:
        write_result(cell, 0.5, **change)
        report(["table", "hdmnet-table3", "--folds", "0", "--output", "drawn"])
        assert lines_of(capsys.readouterr().out)["+ distillation", "measured"] == [""]
    write_result(cell, 0.5)
    report(["table", "hdmnet-table3", "--folds", "0", "--output", "drawn"])
    said = capsys.readouterr().out
    assert lines_of(said)["+ distillation", "measured"] == ["50.00"]
    assert lines_of(said)["+ distillation", "difference"] == [""], "the paper's is over four folds"
    assert "Means over fold 0 alone" in said
    assert (tmp_path / "drawn/hdmnet-table3_folds-0.md").is_file()


def test_small_data_are_never_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table = table_of("hdmnet-table4")
    cell = cell_of_row(table, "S2", data="demo")
    write_result(cell, 0.6)
    cfg = cell.train.cfg
    costs = {"parameters": 1.5, "ms": 3.0, "gflop": 0.2, "gb": 0.1, "machine": "an abacus"}
    costs |= {"settings": settings(cfg), "compute": cfg.compute}
    cell.cost.write_text(json.dumps(costs))
    report(["table", "hdmnet-table4", "--data", "demo", "--folds", "0"])
    said = capsys.readouterr().out
    found = lines_of(said)
    assert found["S2", "measured"] == ["60.00", "1.50", "3.00", "0.20"]
    assert ("S2", "difference") not in found and "other pictures" in said and "abacus" in said
    assert found["CyCTR", "published, a method of others"][0] == "40.30"
    assert ("CyCTR", "measured") not in found


def test_rows_that_are_one_run_here_are_said(tmp_path, monkeypatch, capsys):
    """Small data have one backbone."""
    monkeypatch.chdir(tmp_path)
    report(["table", "hdmnet-table1", "--data", "demo", "--folds", "0"])
    said = capsys.readouterr().out
    assert "One and the same run here: 'HDMNet, VGG-16', 'HDMNet, ResNet-50'." in said


def test_costs_need_neither_weights_nor_data():
    config = ROOT / "config/demo/demo_split0_resnet18.yaml"
    found, other = (
        cost(load_config(config, ["stages", stages]), torch.device("cpu"), repeats=1)
        for stages in (2, 3)
    )
    assert 0 < found["parameters"] < other["parameters"] and 0 < found["gflop"] < other["gflop"]
    assert found["ms"] > 0 and found["size"] == 97
    hsnet = cost(load_config(config.with_name("demo_split0_resnet18_hsnet.yaml")),
                 torch.device("cpu"), repeats=1)  # fmt: skip
    assert hsnet["parameters"] > 1 and hsnet["gflop"] > 0


def test_the_decoders_parameters_of_table_4_by_this_projects_definition():
    """Pyramid, matching and decoder: 3.31 million for S3 (the paper's table says 2.8)."""
    cell = cell_of_row(table_of("hdmnet-table4"), "S3")
    with torch.device("meta"):
        parts = parts_of(build_model(cell.train.cfg))
    assert sum(p.numel() for part in parts for p in part.parameters()) == 3_309_634


def test_the_module_is_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "util.reproduce", "hdmnet-table9"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no table 'hdmnet-table9'; nearest: hdmnet-tabl")
