"""Reading weights: this project's checkpoints and the published layouts, safely and explained."""

from __future__ import annotations

import io
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from model.fewshot import FewShotModel
from util.runtime.errors import FewShotError
from util.weights.layouts import LAYOUTS, Layout

OWN_LAYOUT = "this project"
PRESENCE = "presence"  # entry of a weight file beside its weights (util.presence)
# Parts that a configuration can leave out, and those of stage 1 that HSNet has no use for; weights
# for them are passed over then.
OPTIONAL_PARTS = ("base_learner", "ensemble", "head")
# Tensor name -> the configuration keys that decide its shape.
KEYS_OF_TENSORS = (
    (r"base_learner\.", "split, data_set or use_split_coco (they decide the number of classes)"),
    (r"ensemble\.reweight", "shot or kshot_trans_dim"),
    (r"encoder\.stem", "stem, width or backbone"),
    (r"encoder\.|head\.|reduce_", "backbone or width"),
    (r"backbone\.", "backbone"),
    (r"", "the options of section Method"),
)


class LoadReport(NamedTuple):
    """layout: naming scheme found; loaded: names filled; passed_over: published names unused."""

    layout: str
    loaded: tuple[str, ...] = ()
    passed_over: tuple[str, ...] = ()


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a weight file without running any code from it.

    Raises FewShotError, naming the file, when it is missing, truncated or not a weight file.
    """
    path = Path(path)
    if not path.is_file():
        raise FewShotError(f"weight file {path} does not exist")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0][:160]
        raise FewShotError(
            f"weight file {path} holds more than tensors and plain values, or is no weight file; "
            f"it was not loaded ({reason})"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError,
            TypeError, AssertionError, OverflowError, UnicodeError, zipfile.BadZipFile,
            MemoryError) as error:  # fmt: skip
        # Whatever torch's readers raise on damaged bytes; anything else is a bug and shows.
        reason = str(error).split("\n")[0][:160] or type(error).__name__
        raise FewShotError(f"weight file {path} is truncated or damaged ({reason})") from None
    if not isinstance(content, Mapping):
        raise FewShotError(f"weight file {path} holds a {type(content).__name__}, no state dict")
    return dict(content)


def load_weights(
    model: nn.Module,
    source: str | os.PathLike | Mapping[str, Any],
    complete: bool = False,
    label: str | None = None,
) -> LoadReport:
    """Fill ``model`` from a weight file, its content or a state dict, in whatever known layout.

    Every part of the model (first component of the tensor names) that the source touches must be
    filled completely, with matching shapes and finite numbers; with ``complete`` every part must be
    there. Nothing is changed when anything does not fit. Raises FewShotError naming the file
    (``label``: how to call what is no path), tensor, shapes and the configuration key that would
    make it fit.
    """
    state, label = _open(source, label)
    own = model.state_dict()
    layout = _find_layout(state, own, label)
    renamed, passed_over = _rename(state, layout, own, label)
    _check_shapes(renamed, own, label)
    _check_numbers(renamed, own, label)
    parts = {name.split(".")[0] for name in (own if complete else renamed)}
    missing = [
        name
        for name in own
        if name.split(".")[0] in parts
        and name not in renamed
        and not name.endswith("num_batches_tracked")
    ]
    if missing:
        raise FewShotError(
            f"{label} has no values for {len(missing)} tensors of this model, {missing[0]} among "
            f"them; check {_keys_for(missing[0])}"
        )
    model.load_state_dict({name: tensor for name, (_, tensor) in renamed.items()}, strict=False)
    if isinstance(model, FewShotModel):
        model.derive()
    return LoadReport(layout.name if layout else OWN_LAYOUT, tuple(renamed), tuple(passed_over))


def trained_shot(
    source: str | os.PathLike | Mapping[str, Any], label: str | None = None
) -> int | None:
    """How many supports the ensemble in a weight file or state dict was trained with; None when
    it has no ensemble.

    The K-shot reweighting network exists for K > 1 and its shape tells K.
    """
    state, _ = _open(source, label)
    layout = next((layout for layout in LAYOUTS if layout.recognises(state)), None)
    renamed = {name if layout is None else layout.rename(name): t for name, t in state.items()}
    if "ensemble.gram_merge.weight" not in renamed:
        return None
    reweight = renamed.get("ensemble.reweight.reduce.weight")
    return 1 if reweight is None or reweight.dim() < 2 else reweight.shape[1]


def _open(
    source: str | os.PathLike | Mapping[str, Any], label: str | None
) -> tuple[dict[str, Tensor], str]:
    """The state dict of a file, its content or itself, and how sentences call it."""
    if isinstance(source, Mapping):
        label = label or "state dict"
        return _state_dict(source, label), label
    label = label or f"weight file {source}"
    return _state_dict(read_checkpoint(source), label), label


def _state_dict(content: Mapping[str, Any], label: str) -> dict[str, Tensor]:
    """Unwrap {'model': …} and {'state_dict': …}, strip 'module.'."""
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
    state = {}
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise FewShotError(f"{label} is no state dict: entry {name!r} is not a tensor")
        if tensor.layout is not torch.strided or tensor.is_complex() or tensor.is_meta:
            raise FewShotError(f"{label}: tensor {name} is no array of real numbers")
        state[name.removeprefix("module.")] = tensor
    if not state:
        raise FewShotError(f"{label} holds no tensors")
    return state


def _find_layout(state: dict, own: dict, label: str) -> Layout | None:
    """The published layout of ``state``; None when the names are this project's own."""
    parts = {name.split(".")[0] for name in own} | set(OPTIONAL_PARTS)
    if all(name.split(".")[0] in parts for name in state):
        return None
    for layout in LAYOUTS:
        if layout.recognises(state):
            return layout
    raise FewShotError(
        f"{label} has none of the known layouts (its first tensor is {next(iter(state))})"
    )


def _rename(state: dict, layout: Layout | None, own: dict, label: str):
    """-> {our name: (published name, tensor)}, published names passed over."""
    present = {name.split(".")[0] for name in own}
    renamed, passed_over = {}, []
    for name, tensor in state.items():
        ours = name if layout is None else layout.rename(name)
        if ours is None or (ours.split(".")[0] in OPTIONAL_PARTS and
                            ours.split(".")[0] not in present):  # fmt: skip
            passed_over.append(name)
        elif ours in own:
            renamed[ours] = (name, tensor)
        elif not name.endswith("num_batches_tracked"):
            raise FewShotError(
                f"{label} has a tensor {name} that this model lacks; check {_keys_for(ours)}"
            )
    return renamed, passed_over


def _check_shapes(renamed: dict, own: dict, label: str) -> None:
    for ours, (name, tensor) in renamed.items():
        if tensor.shape != own[ours].shape:
            raise FewShotError(
                f"{label}: tensor {name} has shape {list(tensor.shape)} but this model needs "
                f"{list(own[ours].shape)} ({ours}); the key to change is {_keys_for(ours)}"
            )


def _check_numbers(renamed: dict, own: dict, label: str) -> None:
    for ours, (name, tensor) in renamed.items():
        if not own[ours].is_floating_point():
            continue
        if not tensor.is_floating_point():
            raise FewShotError(
                f"{label}: tensor {name} holds {str(tensor.dtype).removeprefix('torch.')} numbers, "
                "which are no trained weights"
            )
        if not tensor.to(own[ours].dtype).isfinite().all():
            raise FewShotError(f"{label}: tensor {name} holds numbers that are not finite")


def _keys_for(name: str) -> str:
    return next(keys for pattern, keys in KEYS_OF_TENSORS if re.match(pattern, name))


def serialise(state: dict[str, Any]) -> bytes:
    """The bytes of ``torch.save``, made in memory: a full disk then meets one plain write."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
