"""An evaluation that is stopped or killed loses nothing, and ends with the undisturbed result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluate.test_command import script
from tests.evaluate.test_evaluate import ColourModel, evaluator_of, make_data
from tests.models import build
from tests.training_case import ROOT, environment
from util.data.episodes import Episode
from util.evaluate import Partial, partial
from util.evaluate.plan import Task, ends, plan_jobs, remaining
from util.runtime.errors import FewShotError, Interrupted


class StopAfter:
    """A signal that comes after so many batches; None: never."""

    name = "SIGTERM"

    def __init__(self, batches: int | None) -> None:
        self.left = batches

    @property
    def asked(self) -> bool:
        if self.left is not None:
            self.left -= 1
        return self.left == 0


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("tiny"))


OPTIONS = {"baselines": True, "details": True, "progress": False}


def found(result) -> dict:
    """All of a result but the time that it took."""
    content = {"runs": result.runs, "baselines": result.baselines, "mean": result.mean}
    return content | {"scored": str(result.scored), "leakage": result.leakage}


def keeping(evaluator, output: Path, stop=None, model=None, seeds=(5, 6), episodes=12, **options):
    """One call as test.py makes it; ``stop``: after so many batches."""
    kept = Partial(output, StopAfter(stop))
    model = model or ColourModel()
    result = evaluator.run(model, seeds, episodes, partial=kept, **{**OPTIONS, **options})
    kept.remove()
    return result


def test_stopped_again_and_again_it_counts_every_episode_once(config, tmp_path) -> None:
    for engine, batch, stops in (("walk", 1, 5), ("walk", 2, 1), ("naive", 1, 7)):
        evaluator = evaluator_of(config, "batch_size_val", batch)
        whole = evaluator.run(ColourModel(), (5, 6), 12, engine=engine, **OPTIONS)
        model, output, interruptions = ColourModel(), tmp_path / engine / f"{batch}.json", 0
        output.parent.mkdir(exist_ok=True)
        while True:
            try:
                result = keeping(evaluator, output, stops, model, engine=engine)
            except Interrupted as error:
                assert "SIGTERM" in str(error) and f"{output}.partial" in str(error)
                interruptions += 1
            else:
                break
        assert interruptions >= 3
        assert found(result) == found(whole)
        if batch == 1:
            assert model.calls["match"] == 24, "no episode twice"
        assert result.timing["query_encodings"] >= whole.timing["query_encodings"]
        assert list(output.parent.glob(f"{output.name}*")) == []


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3)), min_size=1, max_size=40), st.data()
)
def test_what_remains_is_the_end_of_the_walk(items, data) -> None:
    tasks = [
        Task(0, Episode(e, query, class_id, (e % 7,)), class_id)
        for e, (query, class_id) in enumerate(items)
    ]
    jobs = plan_jobs(tasks)
    done = data.draw(st.integers(0, len(tasks)))
    left = remaining(jobs, done)
    walked = [task for job in jobs for task in job.tasks]
    assert [task for job in left for task in job.tasks] == walked[done:]
    begun = [number for number, job in enumerate(left) if job.begun]
    assert begun == ([] if done in (0, *ends(jobs)) else [0]) and all(job.tasks for job in left)


def test_counts_of_another_evaluation_are_not_taken(config, tmp_path, capsys) -> None:
    output = tmp_path / "r.json"

    def after_a_stop(change: str, *overrides, **changes) -> None:
        with pytest.raises(Interrupted):
            keeping(evaluator_of(config), output, 3)
        capsys.readouterr()
        evaluator = evaluator_of(config, *overrides)
        plain = {k: v for k, v in changes.items() if k not in ("model", "seeds", "episodes")}
        arguments = (
            changes.get("model", ColourModel()),
            changes.get("seeds", (5, 6)),
            changes.get("episodes", 12),
        )
        expected = found(evaluator.run(*arguments, **{**OPTIONS, **plain}))
        assert found(keeping(evaluator, output, **changes)) == expected
        shown = capsys.readouterr().out
        assert ("anew" in shown) == bool(change) and change in shown and shown.count("note") == 1
        assert ("taken from" in shown) != bool(change)

    after_a_stop("")  # nothing has changed
    after_a_stop("", "workers", 1, "cache_gb", 0.5)  # nor anything that counts depend on
    other = ColourModel()
    with torch.no_grad():
        other.gain.fill_(2)
    after_a_stop("weights", model=other)
    after_a_stop("episodes", seeds=(5, 7))
    after_a_stop("episodes", episodes=13)
    after_a_stop("configuration", "ori_resize", False)
    after_a_stop("options", engine="naive")
    after_a_stop("options", baselines=False)


def test_a_picture_that_changed_or_a_damaged_file_means_anew(tmp_path, capsys) -> None:
    config, output = make_data(tmp_path / "data"), tmp_path / "r.json"
    evaluator = evaluator_of(config)
    whole = found(evaluator.run(ColourModel(), (5, 6), 12, **OPTIONS))
    used = evaluator.index.pairs[evaluator.index.entries[0]].image

    def leave_out(*way: str) -> None:
        whole_file = torch.load(f"{output}.partial", weights_only=True)
        inner = whole_file
        for name in way[:-1]:
            inner = inner[name]
        del inner[way[-1]]
        torch.save(whole_file, f"{output}.partial")

    for damage, said in (
        (lambda: os.utime(used, (1, 1)), "pictures"),
        (lambda: Path(f"{output}.partial").write_bytes(b"PK nonsense"), "damaged"),
        (lambda: torch.save({"marks": 3}, f"{output}.partial"), "damaged"),
        (lambda: leave_out("done"), "damaged"),
        (lambda: leave_out("seconds"), "damaged"),
        (lambda: leave_out("tally", "finite"), "damaged"),
    ):
        with pytest.raises(Interrupted):
            keeping(evaluator, output, 3)
        capsys.readouterr()
        damage()
        assert found(keeping(evaluator, output)) == whole
        shown = capsys.readouterr().out
        assert said in shown and "anew" in shown and "taken from" not in shown


def test_what_was_counted_before_a_mistake_is_kept(config, tmp_path, monkeypatch, capsys) -> None:
    evaluator, output = evaluator_of(config), tmp_path / "r.json"
    whole = found(evaluator.run(ColourModel(), (5, 6), 12, **OPTIONS))
    reads, read = [], type(evaluator.dataset).__getitem__

    def fails_at_the_seventh(self, position):
        reads.append(position)
        if len(reads) == 7:
            raise FewShotError("the drive is away")
        return read(self, position)

    monkeypatch.setattr(type(evaluator.dataset), "__getitem__", fails_at_the_seventh)
    with pytest.raises(FewShotError, match="drive is away"):
        keeping(evaluator, output)
    assert found(keeping(evaluator, output)) == whole
    assert "taken from" in capsys.readouterr().out


def test_a_full_disk_ends_no_evaluation_but_a_stop_says_so(config, tmp_path, capsys, monkeypatch):
    evaluator, output = evaluator_of(config), tmp_path / "away" / "r.json"
    (tmp_path / "away").write_text("a file where the folder should be")
    monkeypatch.setattr(partial, "SECONDS", 0)
    whole = found(evaluator.run(ColourModel(), (5, 6), 12, **OPTIONS))
    assert found(keeping(evaluator, output)) == whole
    assert "warning: cannot write" in capsys.readouterr().out
    with pytest.raises(FewShotError, match=r"cannot write .*r\.json\.partial"):
        keeping(evaluator, output, 3)


# ------------------------------------------------------------------------------ real processes

# test.py with its counts written after every batch, so that a test need not wait for half a minute
EAGER = """
import runpy, sys
from util.evaluate import partial
partial.SECONDS = 0
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def words(config: Path, output: Path) -> list[str]:
    weights = config.parent / "weights.pth"
    if not weights.exists():
        torch.save({"model": build(num_base=3).state_dict()}, weights)
    options = ["--config", config, "--weight", weights, "--output", output, "--episodes", 60]
    return ["test.py", *map(str, options), "--baselines"]


def signalled(config: Path, output: Path, kept: Path, number: int) -> tuple[int, str, str]:
    """Start test.py and send it a signal as soon as it has written its counts (again)."""
    before = kept.stat().st_mtime_ns if kept.exists() else 0
    with subprocess.Popen(
        [sys.executable, "-c", EAGER, *words(config, output)],
        cwd=ROOT,
        env=environment(OMP_NUM_THREADS=str(torch.get_num_threads())),  # the same sums as here
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        limit = time.monotonic() + 120
        while not (kept.exists() and kept.stat().st_mtime_ns > before):
            assert process.poll() is None and time.monotonic() < limit, process.communicate()
            time.sleep(0.005)
        process.send_signal(number)
        shown, told = process.communicate(timeout=60)
    return process.returncode, shown, told


def test_killed_and_interrupted_the_same_command_comes_to_the_same_result(
    config, tmp_path, monkeypatch, capsys
) -> None:
    output, kept = tmp_path / "r.json", tmp_path / "r.json.partial"
    status, *_ = signalled(config, output, kept, signal.SIGKILL)
    assert status == -signal.SIGKILL and kept.exists() and not output.exists()

    status, shown, told = signalled(config, output, kept, signal.SIGINT)
    assert status == 75 and "Traceback" not in told and "of 120 episodes: taken from" in shown
    (sentence,) = [line for line in told.splitlines() if line.startswith("error: ")]
    assert "SIGINT" in sentence and str(kept) in sentence and not output.exists()

    contents = []
    for path, goes_on in ((output, True), (tmp_path / "whole.json", False)):
        monkeypatch.setattr(sys, "argv", words(config, path))
        script().main()
        assert ("taken from" in capsys.readouterr().out) == goes_on
        contents.append(json.loads(path.read_text()))
        assert contents[-1].pop("timing")["seconds"] > 0
    assert contents[0] == contents[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "r.json", "r_run.json", "whole.json", "whole_run.json",
    ]  # fmt: skip
