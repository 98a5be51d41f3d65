"""The learned part of a few-shot model alone: 16 MB to hand on instead of 200.

    python -m util.export exp/pascal/HDMNet/split0/resnet50/1shot/best.pth hdmnet_pascal0.pth

The file carries the fingerprint of the frozen encoder and base learner that it was trained over;
:func:`load_learned` puts it over these and refuses others. It is no state dict, so that
:func:`util.weights.checkpoint.load_weights`, which cannot know what it belongs to, refuses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from model import build_model
from model.fewshot import FewShotModel
from util.config import config_from_dict
from util.runtime.errors import FewShotError
from util.runtime.files import refuse_input, write_atomically
from util.weights.checkpoint import load_weights, read_checkpoint, serialise
from util.weights.fingerprint import frozen_fingerprint

FORMAT = "fewshot-learned-1"
KEPT = ("arch", "config", "fold", "seen", "versions")  # of the checkpoint: what its weights are


def export(checkpoint: str | Path, output: str | Path) -> int:
    """Write the learned part of ``checkpoint`` to ``output``; its size in bytes.

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
        model = build_model(config_from_dict(content["config"], str(checkpoint)))
    except ValueError as error:
        raise FewShotError(f"{checkpoint}: {error}") from error
    if not isinstance(model, FewShotModel):
        raise FewShotError(f"{checkpoint} is a base learner; all of it was learned")
    load_weights(model, content, complete=True, label=f"weight file {checkpoint}")
    data = serialise(
        {
            "format": FORMAT,
            "learned": {name: tensor.clone() for name, tensor in model.learnable_state().items()},
            "base_fingerprint": frozen_fingerprint(model),
            **{key: content[key] for key in KEPT if key in content},
        }
    )
    write_atomically(Path(output), data)
    return len(data)


def load_learned(model: FewShotModel, source: str | Path) -> None:
    """Fill the learned part of ``model``, whose frozen part is loaded already, from an export.

    Raises FewShotError, and changes nothing, when ``source`` is no export or was learned over
    another encoder or base learner.
    """
    content = read_checkpoint(source)
    if content.get("format") != FORMAT:
        raise FewShotError(f"{source} is no export: load it as an ordinary weight file")
    fingerprint, learned = content.get("base_fingerprint"), content.get("learned")
    if not isinstance(fingerprint, str) or not isinstance(learned, Mapping):
        raise FewShotError(f"{source} is a damaged export: base_fingerprint or learned is missing")
    if fingerprint != frozen_fingerprint(model):
        raise FewShotError(
            f"{source} was learned over another encoder or base learner than this model holds "
            f"(fingerprint {fingerprint[:12]}); set base_weight (without a base learner: "
            "pretrained) to the one that it belongs to"
        )
    load_weights(model, learned)
