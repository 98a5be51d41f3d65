"""From what a command line names to a model: configuration, weight file, filled network."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from model import build_model
from model.fewshot import FewShotModel
from model.presence import Presence
from util.config import Config, config_from_dict, load_config
from util.runtime.errors import FewShotError, told_of
from util.runtime.files import BEST
from util.weights.checkpoint import PRESENCE, load_weights, read_checkpoint, trained_shot
from util.weights.export import FORMAT as EXPORT
from util.weights.export import learned_in, load_learned
from util.weights.identity import Use, check, origin_of
from util.weights.pretrained import load_pretrained

SHIPPED = Path(__file__).resolve().parents[2] / "assets" / "photos.pth"
# Held-out classes of photographs are segmented best without the base learner (docs/photos.md).
SHIPPED_HEAD = "meta"
# It computes in float32: the bf16 that it was trained in is slow on processors without it.
SHIPPED_SETTINGS = ("amp", "off")
_log = logging.getLogger(__name__)


def weight_file(cfg: Config, weight: str | Path | None = None) -> Path:
    """The checkpoint to evaluate: the argument, ``cfg.weight``, or best.pth of the run's folder.

    Raises FewShotError when there is no such file.
    """
    path = Path(weight or cfg.weight or cfg.exp_dir() / BEST)
    if not path.is_file():
        raise FewShotError(
            f"there is no weight file {path}; train the model first, or name one with --weight"
        )
    return path


def model_of(
    config: str | Path | None, weight: str | Path | None, overrides: Sequence[Any] = ()
) -> tuple[Config, Path]:
    """Configuration and weight file for what a command line names; at least one of the two.

    Without ``config`` the one kept in the checkpoint is taken; without ``weight`` the checkpoint
    that ``test.py`` would take. :func:`shipped` is for what a command line does not name.
    """
    if config is not None:
        cfg = load_config(config, overrides)
        return cfg, weight_file(cfg, weight)
    if weight is None:
        raise FewShotError("no model named: give --config, --weight, or both")
    content = read_checkpoint(weight)
    if not isinstance(content.get("config"), dict):
        raise FewShotError(f"weight file {weight} holds no configuration: give --config too")
    own = SHIPPED_SETTINGS if is_shipped(Path(weight)) else ()
    cfg = config_from_dict(content["config"], str(weight), [*own, *overrides])
    return cfg, Path(weight)


def presence_of(content: Mapping[str, Any], weight: str | Path) -> Presence | None:
    """What tells with these weights whether a picture shows a class; None where nothing does.

    content: of the weight file. Raises FewShotError, naming ``weight``, when it is damaged.
    """
    state = content.get(PRESENCE)
    if state is None:
        return None
    try:
        presence = Presence(len(state["centre"]))
        presence.load_state_dict(state)
    except (RuntimeError, TypeError, LookupError, AttributeError) as error:
        raise FewShotError(
            f"weight file {weight}: its part {PRESENCE} is damaged or of an earlier version; "
            "python -m util.presence fit makes it anew"
        ) from error
    return presence


def shipped(overrides: Sequence[Any] = ()) -> tuple[Config, Path]:
    """Configuration and weight file of the model for photographs that ships (docs/photos.md)."""
    return model_of(None, SHIPPED, overrides)


def is_shipped(weight: Path) -> bool:
    """Whether a weight file is that of the model that ships."""
    return weight.resolve() == SHIPPED


def model_for_pictures(
    config: str | Path | None,
    weight: str | Path | None,
    head: str | None,
    overrides: Sequence[Any] = (),
) -> tuple[Config, Path, str]:
    """Configuration, weight file and head for what a command line about pictures of one's own
    names: the model that ships where it names none, with the head that is best for it.
    """
    cfg, file = model_of(config, weight, overrides) if config or weight else shipped(overrides)
    return cfg, file, head or (SHIPPED_HEAD if is_shipped(file) else "final")


def knows_shapes_only(cfg: Config) -> str | None:
    """What to say before a model of generated pictures is asked about photographs."""
    if cfg.data_set != "demo":
        return None
    return "note: this model was trained on generated shapes only; photographs are strange to it"


def load_model(
    cfg: Config,
    weight: str | Path,
    say: Callable[[str], object] | None = _log.warning,
    use: Use = Use.EVALUATION,
    content: Mapping[str, Any] | None = None,
) -> FewShotModel:
    """The model of ``cfg`` in evaluation mode with every weight from the file, or, for an export
    of the learned part, from the file and ``base_weight`` (over the encoder: ``pretrained``).
    content: of the file, where it was read before.

    It takes any number of supports: the model is built for the number that it was trained with,
    which the K-shot reweighting network and else the file's configuration tell, and any other
    number counts alike. ``say`` is told when that is so for
    ``cfg.shot`` in an evaluation, and what cannot be known about the weights. Raises FewShotError
    when the file does not fit, was trained with other options or on classes that ``cfg`` holds
    out, or when ``cfg`` is about a base learner.
    """
    content = content or read_checkpoint(weight)
    label = f"weight file {weight}"
    exported = content.get("format") == EXPORT
    origin = origin_of(content, label)
    ensemble = trained_shot(learned_in(content, weight) if exported else content, label)
    shot = ensemble or (cfg if origin is None else origin.cfg).shot
    options = cfg.replace(shot=shot)
    if use is Use.PREDICTION and origin is not None and origin.fold is not None:
        options = options.about(origin.fold)  # one's own classes: no data set is needed
    with told_of(cfg.source):
        model = build_model(options)
    if not isinstance(model, FewShotModel):
        raise FewShotError(f"{cfg.source}: arch {cfg.arch} is a base learner, no few-shot model")
    base_learner = getattr(model, "base_learner", None) is not None
    notes = [check(origin, cfg, use, label, base_learner)]
    if exported:
        load_pretrained(model, cfg, known=True, encoder_only=content.get("over") == "encoder")
        load_learned(model, weight)
    else:
        load_weights(model, content, complete=True, label=label)
    if use is Use.EVALUATION and ensemble not in (None, cfg.shot):
        notes.append(
            f"{weight} was trained with {shot} support(s) an episode; the {cfg.shot} here count "
            "alike in the ensemble"
        )
    for note in filter(None, notes):
        if say is not None:
            say(f"note: {note}")
    model.eval()
    model.derive()
    return model
