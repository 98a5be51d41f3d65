"""The model to evaluate or to predict with, from a checkpoint or an export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from model import build_model
from model.fewshot import FewShotModel
from util import export
from util.checkpoint import load_weights, read_checkpoint, trained_shot
from util.errors import FewShotError
from util.pretrained import load_pretrained


def weight_file(cfg: Any, weight: str | Path | None = None) -> Path:
    """The checkpoint to evaluate: the argument, ``cfg.weight``, or best.pth of the run's folder.

    Raises FewShotError when there is no such file.
    """
    path = Path(weight or cfg.weight or cfg.exp_dir() / "best.pth")
    if not path.is_file():
        raise FewShotError(
            f"there is no weight file {path}; train the model first, or name one with --weight"
        )
    return path


def load_model(
    cfg: Any, weight: str | Path, say: Callable[[str], object] | None = None
) -> FewShotModel:
    """The model of ``cfg`` in evaluation mode with every weight from the file, or, for an export
    of the learned part, from the file and ``base_weight``.

    It takes any number of supports: the K-shot reweighting network is built for the number that
    it was trained with, and any other number counts alike. ``say`` is told when that is so for
    ``cfg.shot``. Raises FewShotError when the file does not fit or ``cfg`` is about a base learner.
    """
    content = read_checkpoint(weight)
    exported = content.get("format") == export.FORMAT
    shot = trained_shot(content["learned"] if exported else weight) or cfg.shot
    try:
        model = build_model(cfg.replace(shot=shot))
    except ValueError as error:
        raise FewShotError(f"{cfg.source}: {error}") from error
    if not isinstance(model, FewShotModel):
        raise FewShotError(f"{cfg.source}: arch {cfg.arch} is a base learner, no few-shot model")
    if exported:
        load_pretrained(model, cfg)
        export.load_learned(model, weight)
    else:
        load_weights(model, weight, complete=True)
    if say is not None and shot != cfg.shot:
        say(
            f"note: {weight} was trained with {shot} support(s) an episode; the {cfg.shot} here "
            "count alike in the ensemble"
        )
    return model.eval()
