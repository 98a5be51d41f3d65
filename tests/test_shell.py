"""train_base.sh, train.sh, test.sh and the launcher behind them, with stand-ins for the scripts."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from util.launch import _reserved_port

ROOT = Path(__file__).resolve().parents[1]
SHELLS = [shell for shell in ("sh", "dash", "bash") if shutil.which(shell)]

STUB_PYTHON = """#!/bin/sh
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
    hits = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, f: hits.append(n))
    say("ready")
    end = time.monotonic() + 60
    while not hits and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.5)
    say(f"signals {hits}")
    sys.exit(75 if len(hits) == 1 else 99)
"""


@pytest.fixture
def tree(tmp_path):
    """A copy of the scripts with small configurations and stand-ins for the entry scripts."""
    (tmp_path / "util").mkdir()
    for name in ("util/launch.sh", "util/launch.py", "util/__init__.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("train_base", "train", "test"):
        shutil.copy(ROOT / f"{name}.sh", tmp_path)
        (tmp_path / f"{name}.py").write_text(SCRIPT)
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


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("train.sh split0 pascal 2 resnet50 5",
         "2 train.py --config {P}_split0_resnet50.yaml --opts shot 5"),
        ("train.sh split0 pascal 0", "0 train.py --config {P}_split0_resnet50.yaml"),
        ("train.sh split0 pascal 16 vgg16 1 --resume auto",
         "16 train.py --config {P}_split0_vgg16.yaml --opts shot 1 --resume auto"),
        ("train.sh split0 pascal 1 --opts shot 5 workers 0",
         "1 train.py --config {P}_split0_resnet50.yaml --opts shot 5 workers 0"),
        ("test.sh split0 pascal 3 resnet50_hsnet 5 --runs 2",
         "3 test.py --config {P}_split0_resnet50_hsnet.yaml --opts shot 5 --runs 2"),
        ("train_base.sh split0 pascal 2 resnet50 5 --opts workers 0",
         "2 train_base.py --config {P}_split0_resnet50_base.yaml --opts workers 0"),
        ("train.sh split1 demo 0", "0 train.py --config config/demo/demo_split1_resnet18.yaml"),
    ],
)  # fmt: skip
def test_arguments(stub, line, expected):
    result = sh(stub, *line.split())
    assert result.returncode == 0, result.stderr
    expected = expected.replace("{P}", "config/pascal/pascal")
    assert " ".join(recorded(stub)) == f"-m util.launch {expected}"


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


def test_a_python_without_torch_gives_way_to_the_environment_of_make_install(tree):
    line = [sys.executable, "-I", "-S", "-c"]  # -S: without site-packages, hence without torch
    line += ["import sys; sys.path.insert(0, '.'); sys.argv[1:] = ['0', 'train.py', 'it']\n"
             "import util.launch as l; sys.exit(l.main())"]  # fmt: skip
    without = subprocess.run(line, cwd=tree, capture_output=True, text=True)
    assert without.returncode == 2 and "has no torch; run 'make install'" in without.stderr
    (tree / ".venv/bin").mkdir(parents=True)
    (tree / ".venv/bin/python").write_text('#!/bin/sh\necho "own python: $@"\nexit 7\n')
    (tree / ".venv/bin/python").chmod(0o755)
    own = subprocess.run(line, cwd=tree, capture_output=True, text=True)
    assert (own.returncode, own.stdout) == (7, "own python: train.py it\n")


# ------------------------------------------------------------------ with real processes


def launch(tree, gpus, action):
    return sh(
        tree, "-c", f'"{sys.executable}" -m util.launch {gpus} train.py {action}; exit $?'
    )  # fmt: skip


def test_environment_of_the_processes(tree):
    cpu = sh(tree, "train.sh", "split0", "pascal", "0", PYTHON=sys.executable)
    assert cpu.returncode == 0
    assert "rank - LOCAL_RANK=None WORLD_SIZE=None" in cpu.stdout
    assert cpu.stdout.rstrip().endswith("CUDA_VISIBLE_DEVICES=")
    many = launch(tree, 3, "")
    lines = sorted(many.stdout.splitlines())
    assert len(lines) == 3 and many.returncode == 0
    for rank, line in enumerate(lines):
        assert f"rank {rank} LOCAL_RANK={rank} WORLD_SIZE=3 LOCAL_WORLD_SIZE=3" in line
        assert "MASTER_ADDR=127.0.0.1" in line


@pytest.mark.parametrize(("action", "status"), [("fail1", 3), ("die0", 137)])
def test_status_is_that_of_the_process_that_failed(tree, action, status):
    assert launch(tree, 2, action).returncode == status


def test_others_are_killed_when_one_fails(tree):
    """A process that ignores everything does not outlive the grace period."""
    (tree / "train.py").write_text(
        "import os, signal, sys, time\n"
        "if os.environ['RANK'] == '0': sys.exit(3)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "open('pid', 'w').write(str(os.getpid()))\n"
        "time.sleep(100)\n"
    )
    code = "import sys, util.launch as l; l.GRACE = 1.0; sys.exit(l.launch(2, sys.argv[1:]))"
    result = subprocess.run(
        [sys.executable, "-c", code, sys.executable, "train.py"],
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 3 and "killed" in result.stderr
    if (tree / "pid").exists():
        with pytest.raises(ProcessLookupError):
            os.kill(int((tree / "pid").read_text()), 0)


@pytest.mark.parametrize(
    ("shell", "gpus", "number"),
    [(shell, 1, signal.SIGTERM) for shell in SHELLS] + [("sh", 2, signal.SIGINT)],
)
def test_a_signal_to_the_script_reaches_each_process_once(tree, shell, gpus, number):
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
    assert run.returncode == 75
    assert output.count(f"signals [{int(signal.SIGTERM)}]") == gpus
    assert log.read_text().count("signals [") == gpus


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


def test_the_reserved_port_is_free_to_listen_on_and_given_to_nobody_else():
    with _reserved_port() as holder:
        port = holder.getsockname()[1]
        with socket.socket() as plain, pytest.raises(OSError):
            plain.bind(("127.0.0.1", port))
        with socket.socket(socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET) as store:
            store.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            store.bind(("::" if socket.has_ipv6 else "", port))
            store.listen()
