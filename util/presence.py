"""What tells whether a picture shows a class: fitted on base classes, measured on novel ones.

    python -m util.presence fit --config FILE [--weight FILE]      goes into the weight file
    python -m util.presence measure --config FILE [--weight FILE]  [--output FILE.json]

``fit`` looks at pictures of the training list and its classes only. ``measure`` asks about the
held-out classes, on validation pictures with and without the class in equal number.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from model.fewshot import map_tensors
from model.hdmnet import HDMNet
from model.presence import EVIDENCE, Description, Look, Presence, given_presence, unlearned
from util.config import add_config_arguments
from util.data.index import FoldIndex, build_index
from util.data.transform import read_image, read_pair
from util.predict.predictor import FewShotPredictor, Prediction
from util.runtime.errors import FewShotError, run
from util.runtime.files import expanded, refuse_input, user_path, write_atomically, write_json
from util.weights.checkpoint import PRESENCE, read_checkpoint, serialise
from util.weights.identity import Use
from util.weights.load import load_model, model_of, presence_of

PICTURES = 200
SHOWN = 0.6  # of the pictures that are asked about, as presence assumes, show the class
CALLED_EMPTY = 0.01  # of the pictures that show a class that is new, as fitting can tell
PARTS = 5  # of the classes: each is looked at in a space that the others made
SHRINK = 1.0  # of the within-class covariance towards the sphere, in units of its mean variance
RIDGE = 1e-2
NEWTON = 30  # steps: far more than it needs

Answer = tuple[Look, Sequence[Description]]  # what was found, and the K supports


class Pair(NamedTuple):
    """A question: does the query (its place in the list) show the support's class?"""

    support: int
    query: int
    class_id: int
    shown: bool


def draw_pairs(
    index: FoldIndex, classes: Sequence[int], among: Iterable[int], count: int, seed: int
) -> list[Pair]:
    """``count`` questions whose answer is yes and, with the same supports, as many where it is no.

    Classes take turns; supports and queries are drawn evenly, those without the class from
    ``among``. Raises FewShotError where nothing can be asked.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    shows = {c: set(index.per_class[c]) for c in classes if len(index.per_class[c]) > 1}
    others = {c: [p for p in among if c not in index.shown.get(p, ())] for c in shows}
    if not shows or not all(others.values()):
        raise FewShotError(f"{index.source}: no class has two pictures, or one is on all of them")
    pairs = []
    for number in range(count):
        class_id = list(shows)[number % len(shows)]
        support, query = rng.choice(sorted(shows[class_id]), 2, replace=False)
        pairs.append(Pair(int(support), int(query), class_id, True))
        query = rng.choice(others[class_id])
        pairs.append(Pair(int(support), int(query), class_id, False))
    return pairs


def auroc(scores: np.ndarray, shown: np.ndarray) -> float:
    """How often a picture with the class scores above one without; ties count half."""
    _, ranks, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middle = (np.cumsum(counts) - (counts - 1) / 2)[ranks]
    yes, no = shown.sum(), (~shown).sum()
    return float((middle[shown].sum() - yes * (yes + 1) / 2) / (yes * no))


class _Recorder:
    """In the place of :class:`Presence`: keeps what it would be asked about."""

    def __init__(self) -> None:
        self.asked: list[Answer] = []

    def __call__(self, look: Look, supports: Sequence[Description]) -> float:
        self.asked.append(map_tensors((look, tuple(supports)), Tensor.cpu))
        return 1.0


def ask(
    predictor: FewShotPredictor, index: FoldIndex, pairs: list[Pair]
) -> Iterator[tuple[Pair, Prediction]]:
    """Each question with the prediction that answers it."""
    last = None
    for pair in tqdm(pairs, desc="questions", unit="picture"):
        if (pair.support, pair.class_id) != last:
            predictor.reset()
            image, mask = read_pair(*index.pairs[pair.support], binary=index.binary)
            try:
                predictor.add_support(image, mask, label=index.label(pair.class_id))
            except FewShotError:  # an object that vanishes at the network's size
                last = None
                continue
            last = (pair.support, pair.class_id)
        yield pair, predictor.predict(read_image(index.pairs[pair.query].image))


@torch.inference_mode()
def fit(predictor: FewShotPredictor, count: int) -> Presence:
    """A new :class:`Presence`, from ``count`` pictures with a base class and as many without it.

    The class that is asked about counts as a new one, as those will be that presence is asked
    about: the base learner has not learned it, and its evidence is taken in spaces that were fitted
    on other classes (:func:`_evidence_of_new`). Raises FewShotError where there is one class only.
    """
    cfg = predictor.cfg
    index = build_index(cfg, "train")
    recorder = predictor.presence = _Recorder()
    pairs = draw_pairs(index, cfg.fold.classes("train"), index.entries, count, cfg.manual_seed)
    _refuse_single(index, pairs)
    asked = [pair for pair, _ in ask(predictor, index, pairs)]
    _refuse_single(index, asked)
    answers = [
        _as_new(answer, cfg.fold.base_index(pair.class_id))
        for answer, pair in zip(recorder.asked, asked, strict=True)
    ]
    classes = torch.tensor([pair.class_id for pair in asked])
    shown = torch.tensor([pair.shown for pair in asked])

    presence = _space(answers, classes)
    evidence = _evidence_of_new(answers, classes)
    _regress(presence, evidence, shown)
    presence.bias += math.log(SHOWN / (1 - SHOWN))  # half of the questions are answered yes
    presence.threshold.copy_(presence.probability(evidence[shown]).quantile(CALLED_EMPTY))
    return presence


def _refuse_single(index: FoldIndex, pairs: Sequence[Pair]) -> None:
    if len({pair.class_id for pair in pairs}) < 2:
        raise FewShotError(f"{index.source}: presence is fitted on two classes or more")


def _as_new(answer: Answer, number: int) -> Answer:
    """An answer as of a base learner that has not learned its class ``number``."""
    look, supports = answer
    found = unlearned(look.found, number)
    return look._replace(found=found), [unlearned(support, number) for support in supports]


def _evidence_of_new(answers: Sequence[Answer], classes: Tensor) -> Tensor:
    """Evidence [N, 3] of answers about classes [N], each in a space fitted without its class: the
    classes take turns in :data:`PARTS` parts."""
    evidence = torch.empty(len(answers), len(EVIDENCE))
    turn = torch.unique(classes, return_inverse=True)[1] % PARTS
    for part in turn.unique():
        others = torch.where(turn != part)[0]
        space = _space([answers[at] for at in others], classes[others])
        for at in torch.where(turn == part)[0]:
            evidence[at] = space.evidence(*answers[at])
    return evidence


def _space(answers: Sequence[Answer], classes: Tensor) -> Presence:
    """What compares features, from the supports' places in answers about classes [N]."""
    means, within, count = [], torch.zeros(()), 0
    for class_id in classes.unique():
        of = torch.where(classes == class_id)[0]
        places = torch.cat([each.places for at in of for each in answers[at][1]]).double()
        means.append(places.mean(0))
        apart = places - means[-1]
        within, count = within + apart.T @ apart, count + len(places)
    covariance = within / count
    ridge = SHRINK * covariance.diagonal().mean() * torch.eye(len(covariance))
    values, vectors = torch.linalg.eigh(covariance + ridge)
    presence = Presence(len(covariance))
    presence.centre.copy_(torch.stack(means).mean(0))
    presence.whitening.copy_(vectors / values.sqrt())
    return presence


def _regress(presence: Presence, evidence: Tensor, shown: Tensor) -> None:
    """Logistic regression of ``shown`` [N] on evidence [N, 3], by Newton's method."""
    presence.usual.copy_(evidence.mean(0))
    presence.spread.copy_(evidence.std(0).clamp(min=1e-6))
    standard = ((evidence - presence.usual) / presence.spread).double()
    inputs = torch.cat([standard, torch.ones_like(standard[:, :1])], dim=1)
    ridge = RIDGE * torch.eye(inputs.shape[1], dtype=torch.float64)
    weight = torch.zeros(inputs.shape[1], dtype=torch.float64)
    for _ in range(NEWTON):
        likely = (inputs @ weight).sigmoid()
        slope = inputs.T @ (likely - shown.double()) / len(inputs) + ridge @ weight
        bend = (inputs * (likely * (1 - likely))[:, None]).T @ inputs / len(inputs) + ridge
        weight -= torch.linalg.solve(bend, slope)
    presence.weight.copy_(weight[:-1])
    presence.bias.copy_(weight[-1])


def measure(predictor: FewShotPredictor, count: int, seed: int) -> dict[str, Any]:
    """How well presence tells ``count`` validation pictures with a held-out class from as many
    without it, and what it does to the masks. The predictor paints whatever presence says."""
    cfg = predictor.cfg
    index = build_index(cfg, "test")
    everything = range(len(index.pairs))
    pairs = draw_pairs(index, cfg.fold.classes("test"), everything, count, seed)
    threshold = float(predictor.presence.threshold)
    rows = []
    for pair, result in ask(predictor, index, pairs):
        likely = result.presence["object"]
        found = likely >= threshold
        odds = torch.from_numpy(result.probabilities[1]).logit()
        without = _share(odds > 0)
        painted = _share(given_presence(odds, likely, found) > 0) if found else 0.0
        rows.append((pair.shown, likely, not found, without, painted))
    shown, likely, absent, without, painted = map(np.array, zip(*rows, strict=True))
    return {
        "dataset": cfg.data_set,
        "split": cfg.split,
        "pictures": len(rows),
        "threshold": threshold,
        "auroc": auroc(likely, shown),
        "called_empty": float(absent[shown].mean()),
        "called_empty_where_absent": float(absent[~shown].mean()),
        "nothing_painted": float((painted[shown] == 0).mean()),
        "painted_where_absent": float(painted[~shown].mean()),
        "painted_where_absent_as_published": float(without[~shown].mean()),
        "painted_where_shown": float(painted[shown].mean()),
    }


def _share(mask: Tensor) -> float:
    return float(mask.float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m util.presence", description=__doc__.split("\n")[0]
    )
    parser.add_argument("command", choices=("fit", "measure"))
    add_config_arguments(parser, required=False)
    parser.add_argument(
        "--weight", type=expanded, metavar="FILE", help="default: the run's best.pth"
    )
    parser.add_argument(
        "--pictures", type=int, default=PICTURES, metavar="N", help=f"with the class ({PICTURES})"
    )
    parser.add_argument("--output", type=user_path, metavar="FILE.json", help="measure: where to")
    args = parser.parse_args()
    cfg, weight = model_of(args.config, args.weight, args.opts)
    if args.pictures < 2:
        raise FewShotError(f"--pictures must be 2 or more, not {args.pictures}")
    if args.output:
        refuse_input(args.output, weight)
    use = Use.EVALUATION if args.command == "measure" else Use.PREDICTION
    content = read_checkpoint(weight)
    model = load_model(cfg, weight, use=use, content=content)
    if not isinstance(model, HDMNet):
        raise FewShotError(f"{cfg.source}: {cfg.arch} cannot tell presence, HDMNet can")
    if args.command == "fit":
        presence = fit(FewShotPredictor(model, cfg), args.pictures)
        write_atomically(weight, serialise(content | {PRESENCE: presence.state_dict()}))
        weights = ", ".join(f"{n} {w:.2f}" for n, w in zip(EVIDENCE, presence.weight, strict=True))
        print(f"{weight} tells presence now: {weights}; threshold {presence.threshold:.3f}")
        return
    presence = presence_of(content, weight)
    if presence is None:
        raise FewShotError(f"weight file {weight} cannot tell presence: fit it first")
    predictor = FewShotPredictor(model, cfg, presence=presence, least_presence=0)
    found = measure(predictor, args.pictures, cfg.manual_seed)
    if args.output:
        write_json(args.output, found)
    for name, value in found.items():
        print(f"{name}: {value:.3f}" if isinstance(value, float) else f"{name}: {value}")


if __name__ == "__main__":
    run(main)
