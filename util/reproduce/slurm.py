"""One SLURM array job for what is missing of some tables: stage 1 first, then a task a training."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from util.runtime.errors import FewShotError

HEAD = "#!/bin/bash\n# An array job of python -m util.reproduce.\n"
TEMPLATE = """\
{head}# {count} tasks: stage 1 ({bases}), then a training and its evaluations each.
#
#   sh FILE        submits them as one array, and the later ones when stage 1 has ended
#   sbatch FILE    submits all at once: whoever needs a stage 1 that another makes waits for it
#
# Add what your cluster wants: partition, account, memory. When all have ended, the same command
# without --slurm draws the table.
#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --nodes=1
#SBATCH --ntasks=1
{gpus}#SBATCH --cpus-per-task={cpus}
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={name}-%A_%a.log

if [ -z "${{SLURM_ARRAY_TASK_ID:-}}" ]; then
{submit}
fi
[ ! -f .venv/bin/activate ] || . .venv/bin/activate

case $SLURM_ARRAY_TASK_ID in
{tasks}
*) echo "error: there is no task $SLURM_ARRAY_TASK_ID" >&2; exit 2 ;;
esac
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # srun alone would take one core
srun python -m util.reproduce "$@"
status=$?

# 75: asked to stop and saved; back into the queue, to go on from there.
if [ "$status" -eq 75 ]; then
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit "$status"
"""
BOTH = """\
    first=$(sbatch --parsable --array=0-{base} "$0") || exit
    exec sbatch --dependency="afterany:${{first%%;*}}" --array={rest}-{last} "$0\""""


def array_job(
    name: str, bases: Sequence[Sequence[str]], others: Sequence[Sequence[str]], gpus: int
) -> str:
    """The script. bases, others: arguments of ``python -m util.reproduce`` for each task;
    gpus: of each, 0 on machines without any."""
    tasks = [*bases, *others]
    lines = [f"{n}) set -- {shlex.join(task)} ;;" for n, task in enumerate(tasks)]
    last = len(tasks) - 1
    submit = '    exec sbatch "$0"'
    if bases and others:
        submit = BOTH.format(base=len(bases) - 1, rest=len(bases), last=last)
    return TEMPLATE.format(
        head=HEAD,
        name=name,
        count=len(tasks),
        bases=f"0 to {len(bases) - 1}" if bases else "none is missing",
        last=last,
        gpus=f"#SBATCH --gpus-per-node={gpus}\n" if gpus else "",
        cpus=8 * max(1, gpus),
        submit=submit,
        tasks="\n".join(lines),
    )


def refuse_other(path: Path) -> None:
    """Raise FewShotError when a job would replace a file that is none."""
    try:
        with open(path, "rb") as file:
            is_job = file.read(len(HEAD)) == HEAD.encode()
    except FileNotFoundError:
        return
    except OSError:  # a folder, or a file that cannot be read
        is_job = False
    if not is_job:
        raise FewShotError(
            f"{path} is there and is no array job of this command: name another file"
        )
