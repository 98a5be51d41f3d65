"""train_base.sh, train.sh and test.sh, with stand-ins for the scripts; torchrun is the real one."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHELLS = [shell for shell in ("sh", "dash", "bash") if shutil.which(shell)]

STUB_PYTHON = """#!/bin/sh
[ "$1" = -c ] && exit 0
printf '%s\\n' "$@" >arguments
echo "to stdout"
echo "to stderr" >&2
exit "${CODE:-0}"
"""

SCRIPT = """
import os, signal, sys, time

def say(line):  # one write, so that lines of several processes do not mix
    os.write(1, (line + "\\n").encode())

rank = os.environ.get("RANK", "-")
keys = ("LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "CUDA_VISIBLE_DEVICES")
say(f"rank {rank} " + " ".join(f"{k}={os.environ.get(k)}" for k in keys))
action = sys.argv[-1]
if action == f"fail{rank}":
    sys.exit(3)
if action == f"die{rank}":
    os.kill(os.getpid(), signal.SIGKILL)
if action == "wait":
    sys.path.append("{ROOT}")
    from util.runtime.signals import StopRequest

    with StopRequest() as stop:
        say("ready")
        end = time.monotonic() + 60
        while not stop.asked and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(0.5)  # "saving": whatever else of the same wish arrives must not end it
    say(f"saved after {stop.name}")
    sys.exit(75)
"""


@pytest.fixture
def tree(tmp_path):
    """A copy of the scripts with small configurations and stand-ins for the entry scripts."""
    (tmp_path / "util/runtime").mkdir(parents=True)
    shutil.copy(ROOT / "util/runtime/launch.sh", tmp_path / "util/runtime")
    for name in ("train_base", "train", "test"):
        shutil.copy(ROOT / f"{name}.sh", tmp_path)
        (tmp_path / f"{name}.py").write_text(SCRIPT.replace("{ROOT}", str(ROOT)))
    for data, names in {
        "pascal": ("split0_resnet50", "split0_vgg16", "split0_resnet50_base",
                   "split0_resnet50_hsnet"),
        "demo": ("split1_resnet18",),
    }.items():  # fmt: skip
        folder = tmp_path / "config" / data
        folder.mkdir(parents=True)
        for name in names:
            (folder / f"{data}_{name}.yaml").touch()
    return tmp_path


@pytest.fixture
def stub(tree):
    """The tree with a `python` first in PATH that records its arguments and exits with CODE."""
    folder = tree / "bin"
    folder.mkdir()
    (folder / "python").write_text(STUB_PYTHON)
    (folder / "python").chmod(0o755)
    return tree


def environment(tree, **more):
    path = f"{tree / 'bin'}{os.pathsep}{os.environ['PATH']}"
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "LOG_DIR", "RANK")}
    return {**kept, "PATH": path, **more}


def sh(tree, *arguments, shell="sh", cwd=None, **more):
    return subprocess.run(
        [shell, *arguments],
        cwd=cwd or tree,
        env=environment(tree, **more),
        capture_output=True,
        text=True,
        timeout=100,
    )


def recorded(tree):
    return (tree / "arguments").read_text().splitlines()


TORCHRUN = "-m torch.distributed.run --standalone --nproc_per_node {} --max-restarts {} "


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("train.sh split0 pascal 1 resnet50 5",
         "train.py --config {P}_split0_resnet50.yaml --opts shot 5"),
        ("train.sh split0 pascal 0", "train.py --config {P}_split0_resnet50.yaml"),
        ("train.sh split0 pascal 16 vgg16 1 --resume auto", TORCHRUN.format(16, 0)
         + "train.py --config {P}_split0_vgg16.yaml --opts shot 1 --resume auto"),
        ("train.sh split0 pascal 1 --opts shot 5 workers 0",
         "train.py --config {P}_split0_resnet50.yaml --opts shot 5 workers 0"),
        ("test.sh split0 pascal 3 resnet50_hsnet 5 --runs 2", TORCHRUN.format(3, 0)
         + "test.py --config {P}_split0_resnet50_hsnet.yaml --opts shot 5 --runs 2"),
        ("train_base.sh split0 pascal 1 resnet50 5 --opts workers 0",
         "train_base.py --config {P}_split0_resnet50_base.yaml --opts workers 0"),
        ("train.sh split1 demo 0", "train.py --config config/demo/demo_split1_resnet18.yaml"),
    ],
)  # fmt: skip
def test_arguments(stub, line, expected):
    result = sh(stub, *line.split())
    assert result.returncode == 0, result.stderr
    expected = expected.replace("{P}", "config/pascal/pascal")
    assert " ".join(recorded(stub)) == expected


def test_restarts_and_several_machines_are_torchruns(stub):
    line = ("train.sh", "split0", "pascal", "4", "--resume", "auto")
    assert sh(stub, *line, MAX_RESTARTS="3").returncode == 0
    assert " ".join(recorded(stub)).startswith(TORCHRUN.format(4, 3))
    assert sh(stub, *line, NNODES="2", RDZV_ENDPOINT="one:29400").returncode == 0
    assert " ".join(recorded(stub)).startswith(
        "-m torch.distributed.run --nnodes 2 --nproc_per_node 4 --rdzv_backend c10d "
        "--rdzv_endpoint one:29400 --rdzv_id pascal-split0-resnet50 --max-restarts 0 train.py"
    )
    alone = sh(stub, *line, NNODES="2")
    assert alone.returncode == 2 and "RDZV_ENDPOINT" in alone.stderr


def test_arguments_with_spaces_and_another_working_folder(stub, tmp_path):
    result = sh(
        stub, str(stub / "test.sh"), "split0", "pascal", "1", "--weight", "a b'$c.pth", cwd="/"
    )
    assert result.returncode == 0, result.stderr
    assert recorded(stub)[-2:] == ["--weight", "a b'$c.pth"]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("code", [0, 1, 2, 3, 75, 137])
def test_exit_status_comes_through_the_log_pipe(stub, shell, code):
    arguments = ("train.sh", "split0", "pascal", "1", "resnet50", "5")
    result = sh(stub, *arguments, shell=shell, CODE=str(code), TMPDIR=str(stub))
    assert result.returncode == code
    assert {"to stdout", "to stderr"} <= set(result.stdout.splitlines())
    log = (stub / "exp/logs/train_pascal_split0_resnet50_5shot.log").read_text()
    assert "to stdout" in log and "to stderr" in log and "--opts shot 5" in log
    assert not list(stub.glob("tmp.*"))


def test_logs_are_kept_where_asked(stub):
    for _ in range(2):
        sh(stub, "test.sh", "split0", "pascal", "1", LOG_DIR=str(stub / "my logs"))
    log = (stub / "my logs/test_pascal_split0_resnet50.log").read_text()
    assert log.count("to stdout") == 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train.sh", "split, data set and number of GPUs are needed"),
        ("train.sh split0 pascal", "are needed"),
        ("train.sh 0 pascal 1", "'0' is not a split"),
        ("train.sh split0 ../x 1", "not the name of a data set"),
        ("train.sh split0 pascal two", "'two' is not a number of GPUs"),
        ("train.sh split0 pascal -1", "'-1' is not a number of GPUs"),
        ("train.sh split0 pascal 1 resnet50 0", "'0' is not a number of shots"),
        ("train.sh split0 pascal 1 resnet50 five", "'five' is not a number of shots"),
        ("train.sh split0 pascal 1 resnet34", "no config/pascal/pascal_split0_resnet34.yaml"),
        ("train_base.sh split0 pascal 1 vgg16", "no config/pascal/pascal_split0_vgg16_base.yaml"),
    ],
)
def test_mistakes(stub, line, words):
    result = sh(stub, *line.split())
    assert result.returncode == 2
    assert words in result.stderr and result.stderr.startswith("error: ")
    assert not (stub / "arguments").exists() and not (stub / "exp").exists()


def test_without_python(tree):
    (tree / "bin").mkdir()
    for tool in ("dirname", "mkdir", "mktemp", "mkfifo", "tee", "date", "rm"):
        (tree / "bin" / tool).symlink_to(shutil.which(tool))
    result = sh(tree, "train.sh", "split0", "pascal", "0", shell=shutil.which("sh"),
                PATH=str(tree / "bin"))  # fmt: skip
    assert result.returncode == 2 and "make install" in result.stderr


def test_a_python_without_torch_gives_way_to_the_environment_of_make_install(stub):
    (stub / "bin/python").write_text("#!/bin/sh\nexit 1\n")  # the probe for torch fails
    without = sh(stub, "train.sh", "split0", "pascal", "0")
    assert without.returncode == 2 and "no python with torch" in without.stderr
    (stub / ".venv/bin").mkdir(parents=True)
    (stub / ".venv/bin/python").write_text('#!/bin/sh\necho "own python: $@"\nexit 7\n')
    (stub / ".venv/bin/python").chmod(0o755)
    own = sh(stub, "train.sh", "split0", "pascal", "0")
    assert own.returncode == 7 and own.stdout.startswith("own python: train.py --config")


# ------------------------------------------------------------------ with real processes


def start(tree, gpus, action, **more):
    return sh(tree, "train.sh", "split0", "pascal", str(gpus), "resnet50", "1", action,
              PYTHON=sys.executable, **more)  # fmt: skip


def test_environment_of_the_processes(tree):
    cpu = start(tree, 0, "")
    assert cpu.returncode == 0
    assert "rank - LOCAL_RANK=None WORLD_SIZE=None" in cpu.stdout
    assert cpu.stdout.rstrip().endswith("CUDA_VISIBLE_DEVICES=")
    many = start(tree, 3, "")
    lines = sorted(line for line in many.stdout.splitlines() if line.startswith("rank"))
    assert len(lines) == 3 and many.returncode == 0
    for rank, line in enumerate(lines):
        assert f"rank {rank} LOCAL_RANK={rank} WORLD_SIZE=3 LOCAL_WORLD_SIZE=3" in line


@pytest.mark.parametrize(("action", "told"), [("fail1", "exitcode  : 3"), ("die0", "SIGKILL")])
def test_a_failure_of_one_of_several_is_1_with_its_status_in_the_log(tree, action, told):
    result = start(tree, 2, action)
    assert result.returncode == 1
    assert told in (tree / "exp/logs/train_pascal_split0_resnet50_1shot.log").read_text()


@pytest.mark.parametrize(
    ("shell", "gpus", "number"),
    [(shell, 1, signal.SIGTERM) for shell in SHELLS]
    + [("sh", 1, signal.SIGINT), ("sh", 2, signal.SIGINT), ("sh", 2, signal.SIGTERM)],
)
def test_a_signal_to_the_script_lets_each_process_save(tree, shell, gpus, number):
    """... and the status of the interrupted run comes back; Ctrl-C signals the whole group."""
    run = subprocess.Popen(
        [shell, "train.sh", "split0", "pascal", str(gpus), "resnet50", "1", "wait"],
        cwd=tree,
        env=environment(tree, PYTHON=sys.executable),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        log = tree / "exp/logs/train_pascal_split0_resnet50_1shot.log"
        end = time.monotonic() + 60
        while not (log.exists() and log.read_text().count("ready") == gpus):
            assert time.monotonic() < end and run.poll() is None
            time.sleep(0.05)
        if number == signal.SIGINT:
            os.killpg(run.pid, number)
        else:
            run.send_signal(number)
        output, _ = run.communicate(timeout=60)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == (75 if gpus == 1 else 1)
    assert output.count("saved after SIG") == log.read_text().count("saved after SIG") == gpus


def test_the_slurm_example(stub):
    """The batch script of docs/slurm.md: each task's variables, and the queue after status 75."""
    text = (ROOT / "docs/slurm.md").read_text()
    (stub / "job.slurm").write_text(text.split("```bash\n")[1].split("```")[0])
    (stub / ".venv/bin").mkdir(parents=True)
    (stub / ".venv/bin/activate").touch()
    tools = {
        "srun": "while [ $1 != bash ]; do shift; done\nSLURM_PROCID=5 SLURM_LOCALID=1 exec $@",
        "scontrol": '[ $1 = requeue ] && echo "$@" >>queue\necho first-node\necho second-node',
        "python": 'echo "$@" $RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR >arguments\nexit 75',
    }
    tools["srun"] = tools["srun"].replace("exec $@", 'exec "$@"')
    for name, body in tools.items():
        (stub / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (stub / "bin" / name).chmod(0o755)
    variables = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "8", "SLURM_JOB_NODELIST": "n[1-2]"}
    result = sh(stub, "job.slurm", "a.yaml", "--opts", "shot", "1", shell="bash", **variables)
    assert result.returncode == 75, result.stderr
    line = "train.py --config a.yaml --opts shot 1 --resume auto 5 1 8 first-node"
    assert recorded(stub) == [line]
    assert (stub / "queue").read_text() == "requeue 77\n"
