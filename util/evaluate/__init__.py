"""Evaluation: which episodes (plan), the loop over them (engine), counts (tally), results."""

from util.evaluate.engine import AMP, Evaluator, episodes_at_once
from util.evaluate.load import load_model, weight_file
from util.evaluate.plan import Job, Task, plan_jobs, plan_tasks
from util.evaluate.result import METRICS, Result, grid, percent
from util.evaluate.tally import Tally

__all__ = [
    "AMP",
    "METRICS",
    "Evaluator",
    "Job",
    "Result",
    "Tally",
    "Task",
    "episodes_at_once",
    "grid",
    "load_model",
    "percent",
    "plan_jobs",
    "plan_tasks",
    "weight_file",
]
