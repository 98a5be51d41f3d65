"""Evaluation: which episodes (plan), the way through them (walk), counts (tally), all of it for one
fold (engine), what is kept when it is stopped (partial), what comes out (result)."""

from util.evaluate.engine import Evaluator
from util.evaluate.partial import Partial
from util.evaluate.plan import Job, Task, plan_jobs, plan_tasks
from util.evaluate.result import METRICS, Result, grid, percent
from util.evaluate.tally import Tally
from util.evaluate.walk import episodes_at_once

__all__ = [
    "METRICS",
    "Evaluator",
    "Job",
    "Partial",
    "Result",
    "Tally",
    "Task",
    "episodes_at_once",
    "grid",
    "percent",
    "plan_jobs",
    "plan_tasks",
]
