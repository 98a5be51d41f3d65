"""``make bench``: measure, print a table, write benchmark/RESULTS.md and benchmark/results.json.

python -m benchmark [--only episode training protocol growth loader hsnet onnx] [--device cuda]
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import tempfile
from pathlib import Path

import torch

from benchmark import episode
from benchmark.measure import machine
from benchmark.protocol import loader, protocol
from util.runtime.memory import keep_freed_memory

FOLDER = Path(__file__).parent
SECTIONS = ("episode", "training", "protocol", "growth", "loader", "hsnet", "onnx")
TITLES = {
    "episode": "One episode (evaluation), HDMNet ResNet-50, object share 8 %",
    "training": "One training step, HDMNet ResNet-50, 1 shot",
    "protocol": "The evaluation protocol: naive loop against engine",
    "growth": "Growth with resolution and shots",
    "loader": "Input pipeline",
    "hsnet": "HSNet ResNet-50, one training step at 400², batch 1",
    "onnx": "A prediction without PyTorch: a model as the one that ships, a picture of 640 × 480",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmark", description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the two files")
    args = parser.parse_args()
    keep_freed_memory()  # of all forms alike
    device = torch.device(args.device)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False

    path = args.output / "results.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    for section in args.only:
        print(f"\n{TITLES[section]}", flush=True)
        rows = measure(section, device, results)
        print(table(rows), flush=True)
        results[section] = {"machine": machine(device), "date": today(), "rows": rows}
        args.output.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1))
        (args.output / "RESULTS.md").write_text(report(results))
    print(f"\nwritten: {args.output / 'RESULTS.md'}, {path}")


def measure(section: str, device: torch.device, results: dict) -> list[dict]:
    """The rows of one section."""
    if section == "episode":
        return episode.evaluation(device)
    if section == "training":
        return episode.training(device)
    if section == "growth":
        return episode.growth(device)
    if section == "hsnet":
        from benchmark.hsnet import training_step

        return training_step(device)
    with tempfile.TemporaryDirectory() as folder:
        if section == "protocol":
            return [protocol(Path(folder), device)]
        if section == "onnx":
            from benchmark.onnx import predictors

            return predictors(Path(folder))
        steps = results.get("training", {}).get("rows", [])
        one = {r["size"]: r["ms"] for r in steps if r["batch"] == 1 and r["form"] == "fast float32"}
        return loader(Path(folder), one)


def today() -> str:
    return datetime.date.today().isoformat()


def table(rows: list[dict]) -> str:
    """Rows as a Markdown table."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[show(row.get(column)) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def show(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return "not measured"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def report(results: dict) -> str:
    """The Markdown page of everything measured so far."""
    parts = [
        "# Measurements",
        "",
        "Made by `make bench`. Ratios compare forms measured in turns in one process (medians);",
        "*ratio*: textbook time over this form's; *peak_mib*: memory needed beyond the loaded",
        "model. Times of different sections may come from different moments of the machine.",
    ]
    for section in SECTIONS:
        if section in results:
            found = results[section]
            described = "; ".join(f"{k} {v}" for k, v in found["machine"].items())
            parts += ["", f"## {TITLES[section]}", "", f"{found['date']}. {described}.", ""]
            parts.append(table(found["rows"]))
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
