"""The learned part of a few-shot model alone: 16 MB to hand on instead of 200.

    python -m util.export exp/pascal/HDMNet/split0/resnet50/1shot/best.pth hdmnet_pascal0.pth

The file carries the fingerprint of the frozen encoder and base learner that it was trained over;
:func:`load_learned` puts it over these and refuses others. Over an encoder that anyone can have
(``pretrained: package``, ``timm``, ``torchvision``) the base learner can go into the file as well
(``--over encoder``), and in half precision both take half the room. It is no state dict, so that
:func:`util.weights.checkpoint.load_weights`, which cannot know what it belongs to, refuses it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from model import build_model
from model.fewshot import FewShotModel
from util.config import config_from_dict
from util.runtime.errors import FewShotError
from util.runtime.files import refuse_input, write_atomically
from util.weights.checkpoint import PRESENCE, load_weights, read_checkpoint, serialise
from util.weights.fingerprint import fingerprint
from util.weights.identity import origin_of

FORMAT = "fewshot-learned-1"
# Of the checkpoint: what its weights are, and what was fitted to them.
KEPT = ("arch", "config", "fold", "seen", "versions", PRESENCE)


def export(
    checkpoint: str | Path, output: str | Path, over: str = "base", half: bool = False
) -> int:
    """Write the learned part of ``checkpoint`` to ``output``; its size in bytes.

    over: what the file needs besides, 'base' (all that was frozen) or 'encoder'. half: numbers in
    float16, rounded by 0.05 % at most.

    Raises FewShotError when the checkpoint is not this project's, has no frozen part, or would be
    overwritten.
    """
    refuse_input(output, checkpoint)
    content = read_checkpoint(checkpoint)
    if not {"config", "arch", "versions"} <= content.keys():
        raise FewShotError(
            f"{checkpoint} does not say how it was trained; only checkpoints that train.py wrote "
            "can be exported"
        )
    try:
        cfg = config_from_dict(content["config"], str(checkpoint))
        origin = origin_of(content, str(checkpoint))
        if origin is not None and origin.fold is not None:
            cfg = cfg.about(origin.fold)  # one's own classes: no data set is needed
        model = build_model(cfg)
    except ValueError as error:
        raise FewShotError(f"{checkpoint}: {error}") from error
    if not isinstance(model, FewShotModel):
        raise FewShotError(f"{checkpoint} is a base learner; all of it was learned")
    load_weights(model, content, complete=True, label=f"weight file {checkpoint}")
    state = model.state_dict()
    if over == "encoder":
        learned = {name: t for name, t in state.items() if not name.startswith("encoder.")}
    else:
        learned = model.learnable_state()
    if half:
        learned = {n: t.half() if t.is_floating_point() else t for n, t in learned.items()}
    data = serialise(
        {
            "format": FORMAT,
            "over": over,
            "learned": {name: tensor.clone() for name, tensor in learned.items()},
            "base_fingerprint": _of_the_rest(model, learned),
            **{key: content[key] for key in KEPT if key in content},
        }
    )
    write_atomically(Path(output), data)
    return len(data)


def _of_the_rest(model: FewShotModel, learned: Collection[str]) -> str:
    """The fingerprint of all tensors of ``model`` that are not named."""
    return fingerprint({n: t for n, t in model.state_dict().items() if n not in learned})


def load_learned(model: FewShotModel, source: str | Path) -> None:
    """Fill the learned part of ``model``, whose frozen part is loaded already, from an export.

    Raises FewShotError, and changes nothing, when ``source`` is no export or was learned over
    another encoder or base learner.
    """
    content = read_checkpoint(source)
    if content.get("format") != FORMAT:
        raise FewShotError(f"{source} is no export: load it as an ordinary weight file")
    expected, learned = content.get("base_fingerprint"), learned_in(content, source)
    if not isinstance(expected, str):
        raise FewShotError(f"{source} is a damaged export: base_fingerprint is missing")
    if expected != _of_the_rest(model, learned):
        raise FewShotError(
            f"{source} was learned over another encoder or base learner than this model holds "
            f"(fingerprint {expected[:12]}); set base_weight (without a base learner: "
            "pretrained) to the one that it belongs to"
        )
    load_weights(model, learned, label=f"weight file {source}")


def learned_in(content: Mapping[str, Any], source: str | Path) -> Mapping[str, Any]:
    """The tensors of an export; FewShotError where it has none."""
    learned = content.get("learned")
    if not isinstance(learned, Mapping):
        raise FewShotError(f"{source} is a damaged export: learned is missing")
    return learned
