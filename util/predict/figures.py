"""Episodes of an evaluation, predicted again and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from model.fewshot import FewShotModel
from util.config import Config
from util.data.episodes import Episode
from util.data.index import FoldIndex
from util.data.transform import object_mask, read_pair
from util.draw.files import write_png
from util.draw.panels import panel
from util.predict.predictor import FewShotPredictor
from util.runtime.errors import FewShotError
from util.runtime.files import file_name


def choose_episodes(scores: Sequence[float], count: int) -> dict[str, list[int]]:
    """Positions of the ``count`` best, median and worst scores, no position twice.

    NaN scores (no object, nothing predicted) are left out. With fewer than 3 · count scores the
    best come first, then the worst, then the median.
    """
    order = [i for i in np.argsort(scores, kind="stable")[::-1].tolist() if scores[i] == scores[i]]
    last = max(count, len(order) - count)
    middle = max(count, (len(order) - count) // 2)
    return {
        "best": order[:count],
        "median": order[middle : min(middle + count, last)],
        "worst": order[last:][::-1],
    }


def episode_panel(
    model: FewShotModel,
    cfg: Config,
    index: FoldIndex,
    episode: Episode,
    class_name: str,
    title: str = "",
) -> np.ndarray:
    """Predict one episode as evaluation does, at the pictures' own size, and draw its panel.

    The model's training mode and random state are left as they were. Returns uint8 RGB.
    """
    label = index.label(episode.class_id)
    query, *supports = (
        read_pair(*index.pairs[position], index.binary)
        for position in (episode.query, *episode.supports)
    )
    training = model.training
    predictor = FewShotPredictor(model, cfg, next(model.parameters()).device)
    try:
        for image, mask in supports:
            predictor.add_support(image, mask, class_name, label=label)
        result = predictor.predict(query[0])
    finally:
        model.train(training)
    return panel(
        [image for image, _ in supports],
        [object_mask(mask, label) for _, mask in supports],
        query[0],
        object_mask(query[1], label),
        result.mask,
        result.priors.get(class_name),
        result.correlations[class_name],
        class_name=class_name,
        title=title,
    )


def episode_figures(
    model: FewShotModel,
    cfg: Config,
    index: FoldIndex,
    scored: Sequence[tuple[float, Episode]],
    folder: str | Path,
    count: int,
) -> list[Path]:
    """Panels of the ``count`` best, median and worst episodes as ``best_1_<class>.png``, ...

    An episode whose object vanishes at the network's input size has none; the screen says so.

    Args:
        scored: (IoU, episode) of one run; the model is asked again for the chosen ones.
    """
    paths = []
    chosen = choose_episodes([score for score, _ in scored], count)
    todo = [
        (kind, i + 1, scored[at][1]) for kind, at_ in chosen.items() for i, at in enumerate(at_)
    ]
    for kind, rank, episode in tqdm(todo, desc="figures", unit="episode", leave=False):
        name = index.names[episode.class_id]
        try:
            drawn = episode_panel(model, cfg, index, episode, name, f"{kind} {rank}")
        except FewShotError as error:
            tqdm.write(f"no picture of {kind} {rank}: {error}")
            continue
        file = f"{kind}_{rank}_{file_name(name).replace(' ', '_')}.png"
        paths.append(write_png(Path(folder) / file, drawn))
    return paths
