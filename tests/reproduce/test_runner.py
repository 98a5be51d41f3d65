"""Steps are done once, in order, by whoever comes first; what fails stops nothing else."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from util.reproduce import runner
from util.reproduce.runner import Runner, duration, others_at_work, reason
from util.reproduce.steps import Step, Steps
from util.reproduce.tables import ROOT
from util.runtime.errors import FewShotError, Interrupted
from util.runtime.files import claim
from util.runtime.signals import StopRequest

WRITE = "import sys, pathlib; p = pathlib.Path(sys.argv[1]); p.open('a').write('x')"
FAIL = (
    "import sys; print('step 3'); print('error: the planted mistake', file=sys.stderr); sys.exit(2)"
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(runner, "PAUSE", 0.05)


def step(folder: Path, name: str, *needs: str, kind: str = "train", code: str = WRITE) -> Step:
    output = folder / name
    command = ("-c", code, str(output))
    return Step(kind, name, command, output, tuple(folder / n for n in needs), output.is_file)


def steps_of(*steps: Step) -> Steps:
    return {one.output: one for one in steps}


def cell(folder: Path, name: str, code: str = WRITE) -> tuple[Step, Step]:
    training = step(folder, f"{name}.pth", "base.pth", code=code)
    return training, step(folder, f"{name}.json", f"{name}.pth", kind="test")


def run(steps: Steps) -> Runner:
    targets = [path for path in steps if path.suffix == ".json"]
    one = Runner(steps, targets, StopRequest())
    one.run()
    return one


def test_what_is_missing_is_done_in_order_and_once(tmp_path, capsys):
    base = step(tmp_path, "base.pth", kind="base")
    steps = steps_of(base, *cell(tmp_path, "one"), *cell(tmp_path, "two"))
    run(steps)
    said = capsys.readouterr().out
    started = re.findall(r"(\w+\.\w+)$", said, re.M)
    assert started == ["base.pth", "one.pth", "one.json", "two.pth", "two.json"]
    assert "2 of 2 cells done, 0 running, 0 failed" in said.splitlines()[-1]
    assert "about" in said and "left" in said
    run(steps)
    assert {path.read_text() for path in steps} == {"x"}


def test_the_training_behind_a_result_is_not_asked_for(tmp_path):
    steps = steps_of(step(tmp_path, "base.pth", kind="base"), *cell(tmp_path, "one"))
    (tmp_path / "one.json").write_text("there")
    run(steps)
    assert not (tmp_path / "base.pth").exists() and not (tmp_path / "one.pth").exists()


def test_a_failure_is_named_and_tried_again_and_stops_nothing_else(tmp_path, capsys):
    base = step(tmp_path, "base.pth", kind="base")
    bad, good = cell(tmp_path, "bad", FAIL), cell(tmp_path, "good")
    with pytest.raises(FewShotError, match="1 of 2 cell"):
        run(steps_of(base, *bad, *good))
    said = capsys.readouterr().out
    assert "failed: bad.pth (stage 2): the planted mistake" in said
    assert "failed: bad.json (evaluation): needs stage 2 of bad.pth, which failed" in said
    assert (tmp_path / "good.json").is_file() and not (tmp_path / "bad.json").exists()
    assert (tmp_path / "bad.pth.failed").read_text() == "the planted mistake"
    run(steps_of(base, *cell(tmp_path, "bad"), *good))
    assert (tmp_path / "bad.json").is_file() and not (tmp_path / "bad.pth.failed").exists()


def test_what_lies_there_and_is_of_other_settings_fails_alone(tmp_path, capsys):
    def refuse() -> bool:
        raise FewShotError("exp/x holds a training with epochs 9 (here 2)")

    base = step(tmp_path, "base.pth", kind="base")
    training, test = cell(tmp_path, "other")
    training = Step(training.kind, training.title, training.command, training.output,
                    training.needs, refuse)  # fmt: skip
    with pytest.raises(FewShotError):
        run(steps_of(base, training, test, *cell(tmp_path, "one")))
    said = capsys.readouterr().out
    assert "holds a training with epochs 9" in said and (tmp_path / "one.json").is_file()


def test_a_kind_that_is_left_out_must_be_complete(tmp_path, capsys):
    """No evaluation of a training that has not ended."""
    training, test = cell(tmp_path, "one")
    steps = steps_of(step(tmp_path, "base.pth", kind="base"), training, test)
    alone = Runner(steps, [test.output], StopRequest(), only=["test"])
    with pytest.raises(FewShotError):
        alone.run()
    assert "one.pth (stage 2): it is not complete, and --only leaves it out" in (
        capsys.readouterr().out
    )
    Runner(steps, [], StopRequest(), only=["base", "train"]).run()
    assert training.output.is_file() and not test.output.exists()
    Runner(steps, [test.output], StopRequest(), only=["test"]).run()
    assert test.output.read_text() == training.output.read_text() == "x"


def test_cells_behind_a_picture_that_is_there_count_as_done(tmp_path, capsys):
    result = step(tmp_path, "one.json", kind="test")
    picture = step(tmp_path, "figure.png", "one.json", kind="draw")
    for path in (result.output, picture.output):
        path.write_text("there")
    run(steps_of(result, picture))
    assert "1 of 1 cells done" in capsys.readouterr().out


def test_two_at_once_share_the_work(tmp_path):
    slow = "import time; time.sleep(0.15); " + WRITE
    base = step(tmp_path, "base.pth", kind="base", code=slow)
    cells = [part for name in "abcd" for part in cell(tmp_path, name, slow)]
    script = (
        "import sys; from pathlib import Path; from tests.reproduce.test_runner import *\n"
        "runner.PAUSE = 0.05; slow = sys.argv[2]; folder = Path(sys.argv[1])\n"
        "base = step(folder, 'base.pth', kind='base', code=slow)\n"
        "run(steps_of(base, *[p for n in 'abcd' for p in cell(folder, n, slow)]))"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), slow],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    time.sleep(1.0)
    run(steps_of(base, *cells))
    said, _ = other.communicate(timeout=120)
    assert other.returncode == 0, said
    assert {one.output.read_text() for one in (base, *cells)} == {"x"}


def test_a_command_that_outlives_its_parent_keeps_its_claim(tmp_path):
    """The lock is the child's too: another process waits for it, and finds its output complete."""
    base = step(tmp_path, "base.pth", kind="base")
    held = claim(tmp_path / ".base.pth.claim")
    code = f"import time; time.sleep(0.6); {WRITE}"
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(base.output)], pass_fds=(held.fileno(),)
    )
    held.close()
    assert claim(tmp_path / ".base.pth.claim") is None
    assert others_at_work([base.output]) == 1
    steps = steps_of(base, *cell(tmp_path, "one"))
    run(steps)
    child.wait()
    assert base.output.read_text() == "x" and others_at_work(steps) == 0


def test_a_failure_in_another_process_is_not_repeated(tmp_path):
    bad = step(tmp_path, "bad.pth", code=FAIL)
    one = Runner(steps_of(bad), [bad.output], StopRequest())
    (tmp_path / "bad.pth.failed").write_text("as the other said")
    with pytest.raises(FewShotError):
        one.run()
    assert one.failed == {bad.output: "as the other said"}
    assert not (tmp_path / "reproduce_train.log").exists()


def test_a_note_is_of_this_run_whatever_the_clocks_of_two_machines_say(tmp_path):
    """One that was there is not taken for new, one that another machine writes not for old."""
    bad, good = step(tmp_path, "bad.pth", code=FAIL), step(tmp_path, "good.pth")
    note = tmp_path / "good.pth.failed"
    note.write_text("of the run before")
    os.utime(note, (time.time() + 3600,) * 2)
    one = Runner(steps_of(bad, good), [bad.output, good.output], StopRequest())
    note = tmp_path / "bad.pth.failed"
    note.write_text("as the other said")
    os.utime(note, (time.time() - 3600,) * 2)
    with pytest.raises(FewShotError):
        one.run()
    assert one.failed == {bad.output: "as the other said"} and good.output.is_file()


@pytest.mark.parametrize("place", ["folder", "log", "note"])
def test_a_folder_that_cannot_be_written_fails_alone(tmp_path, capsys, place):
    closed = tmp_path / "closed"
    if place == "folder":
        closed.touch()
    else:
        (closed / {"log": "reproduce_train.log", "note": "bad.pth.failed"}[place]).mkdir(
            parents=True
        )
    bad, good = step(closed, "bad.pth", code=FAIL), step(tmp_path, "good.pth")
    one = Runner(steps_of(bad, good), [bad.output, good.output], StopRequest())
    with pytest.raises(FewShotError, match="1 of 2 cell"):
        one.run()
    assert good.output.is_file()
    said = capsys.readouterr().out
    why = "the planted mistake" if place == "note" else f"cannot write.*{closed}"
    assert re.search(f"^failed: bad.pth \\(stage 2\\): {why}", said, re.M)


class Clock:
    """Of a world in which every pause takes a second. events: what happens when."""

    def __init__(self, events: dict[int, Callable[[], object]]) -> None:
        self.now, self.events = 1000, events

    def monotonic(self) -> float:
        return self.now

    def sleep(self, _: float) -> None:
        self.now += 1
        self.events.get(self.now - 1000, int)()


def test_what_is_waited_for_is_said_when_it_changes_and_again(tmp_path, capsys, monkeypatch):
    one, two = step(tmp_path, "one.pth"), step(tmp_path, "two.pth")
    held = [claim(tmp_path / ".one.pth.claim"), claim(tmp_path / ".two.pth.claim")]
    clock = Clock({130: held[0].close, 135: held[1].close})
    monkeypatch.setattr(runner, "time", clock)
    run(steps_of(one, two))
    lines = capsys.readouterr().out.splitlines()
    both, single = (f"waiting for {names}" for names in (f"{one.output}, {two.output}", two.output))
    assert "2 running, 0 failed; " + both in lines[0]
    assert sum(both in line for line in lines) == 3, "at once, and a minute and two later"
    assert sum(line.endswith(single) for line in lines) == 1


def test_a_training_typed_by_hand_is_waited_for(tmp_path, capsys):
    """It holds its folder's lock and no claim; one that begins meanwhile is no failure."""
    code = (
        "import sys, time; from pathlib import Path; from util.runtime.files import lock\n"
        "output = Path(sys.argv[1]); held = lock(output.with_name('.lock'), 'wait')\n"
        "print('held', flush=True); time.sleep(0.6); output.open('a').write('x')"
    )
    training, test = cell(tmp_path, "one", code)
    typed = subprocess.Popen(
        training.arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    assert typed.stdout.readline() == "held\n"
    base = step(tmp_path / "base", "base.pth", kind="base")
    training = replace(training, needs=(base.output,))
    run(steps_of(base, training, test))
    assert typed.wait() == 0 and training.output.read_text() == "x"
    said = capsys.readouterr().out
    assert said.count(str(training.output)) == said.count(f"waiting for {training.output}") == 1


def test_a_training_typed_by_hand_that_comes_first_is_no_failure(tmp_path, monkeypatch):
    """It took the lock between the look at it and the start of the command."""
    training = step(tmp_path, "one.pth", code=FAIL)
    looks = iter([False, True, True])

    def at_work(_: Path) -> bool:
        if not (busy := next(looks, False)):
            return False
        training.output.write_text("x")
        return busy

    monkeypatch.setattr(runner, "in_use", at_work)
    run(steps_of(training))
    assert not (tmp_path / "one.pth.failed").exists()


def test_a_wish_to_stop_reaches_the_command(tmp_path):
    """SIGTERM is handed on; what the command saved is found the next time."""
    code = (
        "import signal, sys, time, pathlib\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "pathlib.Path(sys.argv[1] + '.begun').touch(); time.sleep(60)"
    )
    slow = step(tmp_path, "slow.pth", code=code)

    def ask() -> None:
        while not (tmp_path / "slow.pth.begun").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    with StopRequest() as stop:
        threading.Thread(target=ask).start()
        with pytest.raises(Interrupted, match="SIGTERM; the same command goes on"):
            Runner(steps_of(slow), [slow.output], stop).run()
    assert not (tmp_path / "slow.pth.failed").exists()


@pytest.mark.parametrize(
    "text, status, words",
    [
        ("a\nerror: first\nb\nerror: last\n", 2, "last"),
        ("10%|# \r20%|## \n", -9, "killed by signal 9; 20%|##"),
        ("", 1, "it ended with status 1; it said nothing"),
        ("x\n", 75, "stopped by a signal"),
        ("x\n", 0, "what it should have made is not there"),
    ],
)
def test_the_reason_is_in_the_commands_words(tmp_path, text, status, words):
    log = tmp_path / "log"
    log.write_text("error: an earlier attempt\n" + text)
    assert words in reason(log, len("error: an earlier attempt\n"), status)


@pytest.mark.parametrize(
    "seconds, words", [(40, "40 s"), (600, "10 min"), (9000, "2.5 h"), (864000, "10 days")]
)
def test_durations(seconds, words):
    assert duration(seconds) == words
