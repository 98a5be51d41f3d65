"""``python -m util.lists``: what a split uses, whether every file is good, how classes mix.

Without options: a table of the configured split. ``--check`` reads every picture and mask and
reports all bad ones at once (exit status 2 if there are any). ``--stats`` counts, per split, the
pictures by the number of categories that they show; ``--chart`` draws that, for several data sets
side by side with ``--beside``. ``--json`` writes what was found.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from util.config import Config, add_config_arguments, load_config
from util.config.folds import by_folder, split_count
from util.data.episodes import EpisodeSampler
from util.data.index import (
    Counts,
    FoldIndex,
    allowed_values,
    build_index,
    count_pixels,
    nothing_shown,
    parallel,
    scan,
    select,
    stray_value,
)
from util.data.sources import Pair, Source, find_pairs, parse_list
from util.data.transform import IGNORE, read_image, read_mask, read_pair
from util.runtime.errors import FewShotError, one_line, run
from util.runtime.files import expanded, refuse_input, user_path, write_json

_MOST_SHOWN = 50  # bad files on the screen; the JSON report names all
_LAST_COLUMN = 5  # pictures with that many categories or more are counted together


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m util.lists", description=__doc__)
    add_config_arguments(parser)
    parser.add_argument("--check", action="store_true", help="read every file, report bad ones")
    parser.add_argument("--stats", action="store_true", help="pictures by number of categories")
    parser.add_argument("--shot", type=int, help="supports an episode needs (the config's shot)")
    parser.add_argument("--json", type=user_path, metavar="FILE", help="write the report as JSON")
    parser.add_argument(
        "--png", type=user_path, metavar="FILE", help="with --stats: write the bar chart"
    )
    parser.add_argument("--chart", type=user_path, metavar="FILE", help="--stats as a bar chart")
    parser.add_argument(
        "--beside", type=expanded, nargs="+", default=[], metavar="FILE",
        help="with --chart: configurations of further data sets (--opts is for all)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.png and not options.stats:
        parser.error("--png needs --stats")
    if options.beside and not options.chart:
        parser.error("--beside needs --chart")
    options.png, options.stats = options.chart or options.png, options.stats or options.chart
    cfg = load_config(options.config, options.opts)
    others = [load_config(path, options.opts) for path in options.beside]
    if options.shot is not None:
        cfg = cfg.replace(shot=options.shot)
    for output in filter(None, (options.json, options.png)):
        refuse_input(output, options.config, *options.beside, cfg.train_list, cfg.val_list)

    report: dict[str, Any] = {"config": options.config, "data_set": cfg.data_set}
    report |= {"split": cfg.split, "shot": cfg.shot, "classes_from": cfg.fold.source}
    report["unlisted"] = [cfg.fold.names[class_id] for class_id in cfg.fold.unlisted]
    if cfg.fold.note:
        print(f"note: {cfg.fold.note}")
    if by_folder(cfg):
        skipped = report["no_classes"] = list(find_pairs(cfg, cfg.fold, "val").passed_over)
        if skipped:
            print(f"{cfg.data_root}: {len(skipped)} folder(s) are no classes: {', '.join(skipped)}")
    if options.check:
        report["lists"] = check(cfg)
    elif not options.stats:
        report["modes"] = overview(cfg)
    if options.stats:
        report["stats"] = category_stats(cfg)
        print_stats(report["stats"])
        stats = {cfg.data_set: report["stats"]}
        for other in others:
            name = other.data_set if other.data_set not in stats else other.source
            stats[name] = category_stats(other)
            print(f"\n{name}:")
            print_stats(stats[name])
        if options.png:
            draw_stats(stats, options.png)
            print(f"figure: {options.png}")
        if others:
            report["beside"] = {name: rows for name, rows in list(stats.items())[1:]}
    if options.json:
        write_json(options.json, report)
    bad = sum(len(entry["bad"]) for entry in report.get("lists", ()))
    if bad:
        raise FewShotError(f"{bad} bad file(s) or line(s) in the lists of '{cfg.data_set}'")
    for entry in report.get("lists", ()):
        for mode, found in entry["modes"].items():
            if "error" in found:
                raise FewShotError(f"{mode}: {found['error']}")


# ---------------------------------------------------------------------------- overview


def overview(cfg: Config) -> dict[str, Any]:
    """Print and return, for training and validation, how many pictures each class has."""
    report = {}
    for mode in _modes(cfg):
        index = build_index(cfg, mode)
        report[mode] = describe(cfg, mode, index)
        print(f"{mode}: {len(set(index.entries))} of {len(index.pairs)} pictures ({index.source})")
        for name, count in report[mode]["pictures"].items():
            print(f"  {one_line(name):<20}{count:>7}")
    return report


def describe(cfg: Config, mode: str, index: FoldIndex) -> dict[str, Any]:
    """Pictures of each class of the split, the classes without ``shot`` supports, and, when no
    class is left, the error that evaluation or training would end with."""
    classes, error = cfg.fold.classes(mode), None
    try:
        sampler = EpisodeSampler(index, classes, cfg.shot, 0)
        left_out, message = list(sampler.dropped), sampler.dropped_message()
    except FewShotError as found:
        left_out, message = [index.names[c] for c in classes], str(found)
        error = message
    if message:
        print(f"warning: {mode}: {one_line(message)}")
    pictures = {index.names[c]: len(index.per_class[c]) for c in sorted(classes)}
    report = {"entries": len(index.entries), "pictures": pictures, "left_out": left_out}
    return report | ({"error": error} if error else {})


def _modes(cfg: Config) -> list[str]:
    modes = ["val", "test"] if cfg.fold.validation else ["val"]
    return modes if cfg.fold.trained is not None else ["train", *modes]


# ---------------------------------------------------------------------------- --check


def check(cfg: Config) -> list[dict[str, Any]]:
    """Read everything that the lists name; print and return what is bad, list by list."""
    by_source: dict[str, dict[str, Any]] = {}
    for mode in _modes(cfg):
        bad: list[dict[str, str]] = []
        source = _lenient_pairs(cfg, mode, bad)
        if source.name not in by_source:
            counts = _check_files(cfg, source, bad)
            entry = {"list": source.name, "pairs": len(source.pairs), "bad": bad, "modes": {}}
            by_source[source.name] = entry | {"counts": counts}
        entry = by_source[source.name]
        index = select(cfg, cfg.fold, mode, source, entry["counts"])
        entry["modes"][mode] = describe(cfg, mode, index)
    report = list(by_source.values())
    for entry in report:
        del entry["counts"]
        print(f"{entry['list']}: {entry['pairs']} pairs read, {len(entry['bad'])} bad")
        for problem in entry["bad"][:_MOST_SHOWN]:
            print(one_line(f"  {problem['file']}: {problem['problem']}"))
        if len(entry["bad"]) > _MOST_SHOWN:
            print(f"  and {len(entry['bad']) - _MOST_SHOWN} more (--json FILE names all)")
    return report


def _lenient_pairs(cfg: Config, mode: str, bad: list[dict[str, str]]) -> Source:
    """The pairs of a mode; of a plain list also when some of its lines are bad."""
    try:
        return find_pairs(cfg, cfg.fold, mode)
    except FewShotError as error:
        path = cfg.train_list if mode == "train" else cfg.val_list
        if by_folder(cfg) or path is None or Path(path).name.startswith("data_list_"):
            raise
        pairs = []
        for number, found in parse_list(path, cfg.data_root, cfg.allow_outside_root):
            if isinstance(found, str):
                bad.append({"file": f"{path}, line {number}", "problem": found})
            else:
                pairs.append(found)
        if not bad:
            raise error
        return Source(pairs, str(path), Path(path))


def _check_files(cfg: Config, source: Source, bad: list[dict[str, str]]) -> list[Counts]:
    """Pixel counts of the good masks (none for bad ones); problems are added to ``bad``."""
    binary = source.classes is not None
    job = partial(check_pair, binary=binary, allowed=allowed_values(cfg.fold, binary))
    results = parallel(job, source.pairs, f"reading {source.name}")
    seen: set[tuple[int, Path]] = set()
    for position, (pair, (_, problems)) in enumerate(zip(source.pairs, results, strict=True)):
        bad += ({"file": path, "problem": problem} for path, problem in problems)
        key = source.same_picture.get(position, position), pair.mask
        if key in seen:
            bad.append({"file": str(pair.image), "problem": "listed twice with the same mask"})
        seen.add(key)
    return [counts for counts, _ in results]


def check_pair(pair: Pair, binary: bool, allowed: range) -> tuple[Counts, list[tuple[str, str]]]:
    """Pixel counts of a pair's mask, and (file, problem) of all that is wrong with the pair."""
    try:
        counts = count_pixels(read_pair(*pair, binary=binary)[1])
    except FewShotError:
        pass  # read the two alone below, since both may be bad
    else:
        problem = stray_value(counts, allowed) or nothing_shown(counts, binary)
        return ({}, [(str(pair.mask), problem)]) if problem else (counts, [])
    problems = []
    for path, read in ((pair.image, read_image), (pair.mask, partial(read_mask, binary=binary))):
        try:
            read(path)
        except FewShotError as error:
            problems.append((str(path), str(error).removeprefix(f"{path}: ")))
    if not problems:
        try:
            read_pair(*pair, binary=binary)
        except FewShotError as error:
            problems.append((str(pair.mask), str(error)))
    return {}, problems


# ---------------------------------------------------------------------------- --stats


def category_stats(cfg: Config) -> list[dict[str, Any]]:
    """Per split and mode: pictures that the split uses, by how many categories they show."""
    rows = []
    for split in range(split_count(cfg)):
        of_split = cfg.replace(split=split)
        for mode in _modes(of_split):
            source = find_pairs(of_split, of_split.fold, mode)
            counts = scan(source)
            index = select(of_split, of_split.fold, mode, source, counts)
            categories = Counter(
                len(set(counts[position]) - {0, IGNORE}) for position in set(index.entries)
            )
            by_count = {str(number): categories[number] for number in range(1, _LAST_COLUMN)} | {
                f"{_LAST_COLUMN}+": sum(n for c, n in categories.items() if c >= _LAST_COLUMN)
            }
            pictures = len(set(index.entries))
            rows.append({"split": split, "mode": mode, "pictures": pictures, "by": by_count})
    return rows


def print_stats(rows: list[dict[str, Any]]) -> None:
    """The counts as a table."""
    columns = list(rows[0]["by"])
    print("pictures by the number of categories that they show")
    print(f"{'split':<7}{'mode':<7}{'pictures':>9}" + "".join(f"{name:>8}" for name in columns))
    for row in rows:
        numbers = "".join(f"{row['by'][name]:>8}" for name in columns)
        print(f"{row['split']:<7}{row['mode']:<7}{row['pictures']:>9}{numbers}")


def draw_stats(stats: Mapping[str, Sequence[dict[str, Any]]], path: Path) -> None:
    """Data set -> counts, as grouped bars: a row a data set, a panel a mode (the supplementary
    material's Figure 1)."""
    # matplotlib takes its time, and most calls draw nothing
    from util.draw.charts import label, new_figure, write_figure

    modes = list(dict.fromkeys(row["mode"] for rows in stats.values() for row in rows))
    figure = new_figure(5.5 * len(modes), 3.6 * len(stats))
    panels = figure.subplots(len(stats), len(modes), squeeze=False)
    for line, (data_set, rows) in zip(panels, stats.items(), strict=True):
        columns = list(rows[0]["by"])
        for axes, mode in zip(line, modes, strict=True):
            chosen = [row for row in rows if row["mode"] == mode]
            width = 0.8 / max(1, len(chosen))
            for i, row in enumerate(chosen):
                places = [x + (i - (len(chosen) - 1) / 2) * width for x in range(len(columns))]
                heights = [row["by"][name] for name in columns]
                axes.bar(places, heights, width, label=f"split {row['split']}")
            axes.set_xticks(range(len(columns)), columns)
            title = label(f"{data_set}: {mode}", 80)
            axes.set(title=title, xlabel="categories in the picture", ylabel="pictures")
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False)
    write_figure(figure, path)


if __name__ == "__main__":
    run(main)
