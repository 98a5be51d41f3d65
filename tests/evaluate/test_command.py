"""test.py as a user runs it: result file, screen, torchrun, and the sentences for mistakes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.equality import differences, same_tallies
from tests.evaluate.test_evaluate import make_data
from tests.models import build
from util.evaluate import Evaluator
from util.predict import figures
from util.runtime.errors import FewShotError, run
from util.weights.training import weights_in

ROOT = Path(__file__).resolve().parents[2]


def script():
    # The standard library has a package of the same name.
    spec = importlib.util.spec_from_file_location("evaluation_script", ROOT / "test.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("cli")
    config = make_data(root)
    torch.save({"model": build(num_base=3).state_dict()}, root / "weights.pth")
    return config


@pytest.fixture
def call(config, monkeypatch, capsys):
    """Run test.py's main with arguments in this process; (exit status, stdout, stderr)."""

    def invoke(*arguments: object, weight: bool = True) -> tuple[int, str, str]:
        chosen = ["--weight", config.parent / "weights.pth"] if weight else []
        words = ["test.py", "--config", config, *chosen, *arguments]
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        status = 0
        try:
            run(script().main)
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return invoke


def test_a_result_is_of_the_weights_that_were_read(config, call, tmp_path, monkeypatch):
    """... though a training puts others there before the evaluation ends."""
    weight, output = tmp_path / "best.pth", tmp_path / "r.json"
    model = build(num_base=3)
    torch.save({"model": model.state_dict()}, weight)
    before, evaluate = weights_in(weight), Evaluator.run

    def run_slowly(*arguments, **options):
        later = {name: value + 1 for name, value in model.state_dict().items()}
        torch.save({"model": later, "more": torch.zeros(9)}, weight)
        return evaluate(*arguments, **options)

    monkeypatch.setattr(Evaluator, "run", run_slowly)
    status, *_ = call("--weight", weight, "--output", output, "--episodes", 2, weight=False)
    content = json.loads(output.read_text())
    assert status == 0 and content["weights"] == before != weights_in(weight)


def test_result_file_and_screen(call, config, tmp_path) -> None:
    output = tmp_path / "new" / "r.json"
    status, shown, _ = call("--episodes", 6, "--runs", 3, "--output", output, "--baselines")
    content = json.loads(output.read_text())
    assert status == 0
    assert content["episodes"] == 6 and [r["seed"] for r in content["runs"]] == [510, 365, 382]
    assert content["weight"] == str(config.parent / "weights.pth")
    assert set(content["baselines"]) == {"all_foreground", "prior"}
    assert f"{100 * content['mean']['miou']:.2f}" in shown
    assert f"{100 * content['baselines']['prior']['miou']:.2f}" in shown
    assert "class 4" in shown and "meta" in shown and str(output) in shown
    record = json.loads((output.parent / "r_run.json").read_text())
    assert record["config"]["EVALUATE"]["episodes"] == 6
    assert record["config"]["Method"]["width"] == 8
    assert {"code", "torch"} <= set(record["versions"])


def test_defaults_come_from_the_configuration(call, config) -> None:
    status, _, _ = call("--opts", "episodes", 3, "name", "here")
    found = list((config.parent / "exp").rglob("here/result.json"))
    assert status == 0 and len(found) == 1
    content = json.loads(found[0].read_text())
    assert content["episodes"] == 3 and len(content["runs"]) == 2
    assert "baselines" not in content and "swapped_supports" not in content


def test_swapped_supports_are_marked_and_go_to_their_own_file(call, config, tmp_path) -> None:
    small = ("--episodes", 4, "--runs", 1, "--opts", "exp_root", tmp_path)
    assert call(*small, "--swap-supports")[0] == 0
    (found,) = tmp_path.rglob("result_swapped.json")
    assert json.loads(found.read_text())["swapped_supports"] is True
    assert call(*small)[0] == 0
    assert sorted(p.name for p in found.parent.glob("*.json")) == [
        "result.json",
        "result_run.json",
        "result_swapped.json",
        "result_swapped_run.json",
    ]


def test_naive_option_gives_the_same_runs(call, tmp_path, decided) -> None:
    small = ("--episodes", 4, "--runs", 2, "--opts", "compute", "textbook", "--output")
    contents = []
    for extra in ([], ["--naive"]):
        assert call(*small, tmp_path / "r.json", *extra)[0] == 0
        contents.append(json.loads((tmp_path / "r.json").read_text()))
    walk, naive = decided
    assert same_tallies(walk, naive)
    if not any(differences(walk, naive).values()):
        assert contents[0]["runs"] == contents[1]["runs"]
    assert [c["timing"]["engine"] for c in contents] == ["walk", "naive"]


def test_figures(call, tmp_path) -> None:
    output = tmp_path / "r.json"
    status, shown, _ = call("--episodes", 6, "--runs", 2, "--figures", 1, "--output", output)
    assert status == 0
    names = {path.name.split("_")[0] for path in (tmp_path / "figures").glob("*.png")}
    assert {"best", "median", "worst", "class", "runs.png"} <= names
    assert "figures/best_1" in shown


def test_an_episode_that_cannot_be_drawn_leaves_the_others(call, tmp_path, monkeypatch) -> None:
    draw, asked = figures.episode_panel, []

    def vanishes_once(*arguments, **options):
        asked.append(arguments)
        if len(asked) == 1:
            raise FewShotError("the object vanishes at the network's input size")
        return draw(*arguments, **options)

    monkeypatch.setattr(figures, "episode_panel", vanishes_once)
    status, shown, told = call("--episodes", 6, "--figures", 1, "--output", tmp_path / "r.json")
    assert status == 0 and "no picture of best 1: the object vanishes" in shown + told
    assert len(list((tmp_path / "figures").glob("[mw]*_1_*.png"))) == 2


@pytest.mark.parametrize(
    "arguments,sentence",
    [
        (["--weight", "nowhere.pth"], "nowhere.pth"),
        (["--runs", "11"], "seeds"),
        (["--runs", "0"], "runs"),
        (["--episodes", "0"], "episodes"),
        (["--episodes", "-3"], "episodes"),
        (["--figures", "-1"], "--figures"),
        (["--figures", "1", "--swap-supports"], "--swap-supports"),
        (["--opts", "shoot", "1"], "shot"),
        (["--opts", "shot", "14", "ensemble", "False"], "support"),
        (["--opts", "arch", "PSPNet"], "PSPNet"),
        (["--opts", "val_list", "nowhere.txt"], "nowhere.txt"),
        (["--opts", "width", "16"], "width"),
        (["--output", "/dev/null/r.json"], "/dev/null/r.json"),
        (["--output", "."], "cannot write"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence_and_status_2(call, arguments, sentence) -> None:
    status, _, shown = call(*arguments, weight="--weight" not in arguments)
    assert status == 2
    assert shown.startswith("error: ") and shown.count("\n") == 1
    assert sentence in shown


def test_without_weights_it_says_where_it_looked(call) -> None:
    status, _, shown = call(weight=False)
    assert status == 2 and "best.pth" in shown and "--weight" in shown


def test_a_failed_evaluation_leaves_the_earlier_result(call, config, tmp_path) -> None:
    output = tmp_path / "r.json"
    output.write_text("kept")
    assert call("--output", output, "--opts", "shot", 14)[0] == 2
    assert output.read_text() == "kept"


@pytest.mark.slow
def test_torchrun_writes_the_same_result(config, tmp_path) -> None:
    def start(name: str, *launcher: str) -> dict:
        words = ["test.py", "--config", config, "--weight", config.parent / "weights.pth"]
        words += ["--episodes", 7, "--output", tmp_path / name]
        done = subprocess.run(
            [sys.executable, *launcher, *map(str, words)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads((tmp_path / name).read_text())

    alone = start("one.json")
    shared = start("two.json", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    assert shared.pop("timing")["processes"] == 2 and alone.pop("timing")["processes"] == 1
    assert shared == alone


def test_ctrl_c_outside_the_walk_is_one_sentence_too(capsys) -> None:
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        run(main)
    assert end.value.code == 75 and capsys.readouterr().err == "error: interrupted\n"
