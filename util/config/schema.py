"""Every configuration key in one table: section, default, type, range or choices, one line of help.

A new key is one line here, and one word in :data:`ROLES` when trained weights depend on it. Names
follow PFENet, BAM and HDMNet; :data:`IGNORED` says what becomes
of their keys that have no meaning in this project.
"""

from __future__ import annotations

import math
import numbers
import os
import reprlib
from dataclasses import dataclass, replace
from typing import Any

from util.runtime.errors import FewShotError
from util.runtime.files import expanded

_LONGEST = 1000  # entries of a list; aliased YAML could hold billions
_LARGEST = 10**12


class BadValue(ValueError):
    """A value that a key cannot take; the message ends a sentence that begins with the key."""


def show(value: Any) -> str:
    """``value`` in at most a line, whatever it is (aliased YAML can be exponentially large)."""
    try:
        return reprlib.repr(value)
    except ValueError:  # integers beyond Python's digit limit have no repr
        return "a number with thousands of digits"


@dataclass(frozen=True)
class Key:
    """One configuration key. ``kind``: bool, int, float, str, path; ints, strs, groups (lists)."""

    name: str
    kind: str
    default: Any
    doc: str
    low: float | None = None
    high: float | None = None
    choices: tuple[Any, ...] = ()
    prefix: str = ""  # text that begins so is taken beside the choices
    null: bool = False
    section: str = ""
    role: str = ""  # what it is to trained weights, see ROLES
    readers: tuple[str, ...] = ()  # the architectures that read it; empty: all

    def read_by(self, arch: str) -> bool:
        """Whether the key means something to ``arch``; one's own architecture may read any."""
        return not self.readers or arch in self.readers or arch not in _OURS

    def convert(self, value: Any) -> Any:
        """The value in the key's own type (sequences become tuples), or :class:`BadValue`."""
        if value is None:
            if self.null:
                return None
            raise BadValue(f"needs a value ({self.expects()})")
        if value is False and "off" in self.choices:
            value = "off"  # YAML 1.1 reads a bare `off` as false
        value = getattr(self, f"_{self.kind}")(value)
        items = value if isinstance(value, tuple) else (value,)
        others = {item for item in items if not (self.prefix and item.startswith(self.prefix))}
        if self.choices and not others <= set(self.choices):
            raise self._wrong(list(value) if isinstance(value, tuple) else value)
        for item in items:
            self._check_range(item)
        return value

    def expects(self) -> str:
        """What the key takes, in words."""
        if self.choices:
            few = "some of " if self.kind in ("ints", "strs") else ""
            named = [*map(str, self.choices), *([f"{self.prefix}<name>"] if self.prefix else ())]
            return few + " or ".join(named)
        words = {
            "bool": "True or False",
            "int": "a whole number",
            "float": "a number",
            "str": "text",
            "path": "a path",
            "ints": "a list of whole numbers",
            "strs": "a list of names",
            "groups": "a list of lists of class ids or names",
        }[self.kind]
        return words + self._range()

    def _range(self) -> str:
        if self.low is not None and self.high is not None:
            return f" from {self.low} to {self.high}"
        return "" if self.low is None else f" of at least {self.low}"

    def _check_range(self, value: Any) -> None:
        if isinstance(value, tuple):
            for inner in value:
                self._check_range(inner)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            below = self.low is not None and value < self.low
            if below or (self.high is not None and value > self.high):
                raise self._wrong(value)

    def _wrong(self, value: Any) -> BadValue:
        return BadValue(f"must be {self.expects()}, not {show(value)}")

    def _bool(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise self._wrong(value)
        return value

    def _int(self, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise self._wrong(value)
        if abs(value) > _LARGEST:
            raise BadValue("is too large")
        return int(value)

    def _float(self, value: Any) -> float:
        # YAML 1.1 reads 1e-4 (no dot) as text, so text that is a number counts as one.
        if isinstance(value, bool) or not isinstance(value, (numbers.Real, str)):
            raise self._wrong(value)
        try:
            number = float(value)
        except (ValueError, OverflowError) as error:
            raise self._wrong(value) from error
        if not math.isfinite(number):
            raise self._wrong(value)
        return number

    def _str(self, value: Any) -> str:
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if not isinstance(value, str):
            hint = "" if self.choices else "; write it in quotes"
            raise BadValue(f"must be {self.expects()}, not {show(value)}{hint}")
        if "\0" in value:
            raise BadValue("must not contain a NUL character")
        return value

    def _path(self, value: Any) -> str:
        try:
            return expanded(self._str(value))
        except FewShotError as error:
            raise BadValue(str(error)) from error

    def _sequence(self, value: Any) -> list[Any]:
        if not isinstance(value, (list, tuple)) or not value:
            raise self._wrong(value)
        if len(value) > _LONGEST:
            raise BadValue(f"has {len(value)} entries, more than {_LONGEST}")
        return list(value)

    def _unique(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) < len(values):
            raise BadValue(f"must not name anything twice: {show(list(values))}")
        return values

    def _ints(self, value: Any) -> tuple[int, ...]:
        return self._unique(tuple(self._int(item) for item in self._sequence(value)))

    def _strs(self, value: Any) -> tuple[str, ...]:
        return self._unique(tuple(self._str(item) for item in self._sequence(value)))

    def _class_id(self, value: Any) -> int:
        try:
            return self._int(value)
        except BadValue as error:  # YAML reads no, 1.5 and 2024-05-01 as something else
            raise BadValue(f"{error}; write class names such as this one in quotes") from error

    def _groups(self, value: Any) -> tuple[tuple[int | str, ...], ...]:
        return tuple(
            self._unique(
                tuple(
                    item if isinstance(item, str) else self._class_id(item)
                    for item in self._sequence(group)
                )
            )
            for group in self._sequence(value)
        )


def _bool(name: str, default: bool, doc: str) -> Key:
    return Key(name, "bool", default, doc)


def _int(name: str, default: int | None, doc: str, low: int = 0, high: int | None = None) -> Key:
    return Key(name, "int", default, doc, low, high, null=default is None)


def _float(
    name: str, default: float | None, doc: str, low: float | None = 0.0, high: float | None = None
) -> Key:
    return Key(name, "float", default, doc, low, high, null=default is None)


def _str(name: str, default: str | None, doc: str) -> Key:
    return Key(name, "str", default, doc, null=default is None)


def _path(name: str, default: str | None, doc: str) -> Key:
    return Key(name, "path", default, doc, null=default is None)


def _pick(name: str, choices: tuple[Any, ...], doc: str, *, null: bool = False) -> Key:
    """The first choice is the default, or null where the default depends on other keys."""
    kind = "int" if isinstance(choices[0], int) else "str"
    return Key(name, kind, None if null else choices[0], doc, choices=choices, null=null)


SECTIONS: dict[str, tuple[Key, ...]] = {
    "DATA": (
        _str("data_set", "pascal", "pascal, coco, fss, demo, or a name of your own"),
        _path("data_root", None, "folder that the paths in the lists start from (data/<data_set>)"),
        _path("train_list", None, "pairs to train on; null: the data set's list or class folders"),
        _path("val_list", None, "pairs to evaluate on; null: the data set's list or class folders"),
        Key("class_names", "strs", None, "class names, ids 1, 2, ...; null: the data set's own",
            null=True),
        Key("folds", "groups", None, "classes (ids or names) that each fold holds out", null=True),
        _path("split_lists", None, "fss: folder with the class lists of its three parts"),
        _str("trained_on", None, "data set that the model was trained on, if another"),
        _bool("use_split_coco", True, "COCO: fold i holds out classes 4k+i+1, else 20i+1..20i+20"),
        _pick("protocol", ("bam", "pfenet", "hsnet"), "which training pictures a fold keeps"),
        _int("min_pixels", 2048, "pixels of a class that a picture must show to be listed", 1),
        _pick("ann_type", ("mask", "bbox"), "supports carry their mask or only its bounding box"),
        _bool("allow_outside_root", False, "let list entries lead out of data_root"),
    ),
    "TRAIN": (
        _int("split", 0, "fold whose classes are held out", 0),
        _int("shot", 1, "supports of an episode", 1, 100),
        _int("train_h", 473, "height of training pictures", 16, 4096),
        _int("train_w", 473, "width of training pictures", 16, 4096),
        _int("val_size", 473, "side of evaluation pictures", 16, 4096),
        _bool("augment", True, "random scale, rotation, blur and flip; False: only the resize"),
        _bool("blur", True, "blur of 5 pixels, half of the time, as part of the augmentation"),
        _float("scale_min", 0.9, "smallest random scale", 0.01, 10),
        _float("scale_max", 1.1, "largest random scale", 0.01, 10),
        _float("rotate_min", -10, "smallest random rotation in degrees", -180, 180),
        _float("rotate_max", 10, "largest random rotation in degrees", -180, 180),
        _pick("ignore_label", (255,), "mask value that is neither object nor background"),
        _pick("padding_label", (255,), "mask value of what lies outside the picture"),
        _int("batch_size", 4, "episodes (stage 1: pictures) of a step on each GPU", 1),
        _int("accumulate", 1, "steps whose gradients are summed before the weights move", 1),
        _pick("optimizer", ("adamw", "sgd", "adam"),
              "null: adamw, PSPNet sgd, HSNet adam", null=True),
        _float("base_lr", 1e-4, "learning rate of the parameter groups with scale 1", 1e-12, 100),
        _float("power", 0.9, "exponent of the poly decay; 0: constant learning rate", 0, 100),
        _float("momentum", 0.9, "momentum of sgd", 0, 0.9999),
        _float("weight_decay", 0.01, "weight decay", 0, 1),
        _bool("warmup", False, "raise the learning rate linearly over the first warmup_step"),
        _int("warmup_step", 500, "iterations of the warm-up", 1),
        _int("epochs", 200, "passes over the training list", 1),
        _int("max_iterations", None, "end (and decay) after so many steps instead of epochs", 1),
        _int("stop_interval", 75, "epochs without a better result before stopping; 0: never"),
        _float("aux_weight1", 1.0, "weight of the distillation loss", 0, 1000),
        _float("aux_weight2", 1.0, "weight of the base learner's loss", 0, 1000),
        _bool("fix_bn", True, "keep batch norms in evaluation mode"),
        _bool("sync_bn", True, "share batch-norm statistics between GPUs where they are learned"),
        _int("print_freq", 10, "iterations between two lines of the log", 1),
        _int("save_freq", 10, "epochs between two kept checkpoints (epoch_N.pth)", 1),
        _int("save_every", 0, "iterations between two resumable checkpoints; 0: off"),
        _float("save_minutes", 0.0, "minutes between two resumable checkpoints; 0: off", 0, 1e6),
        _int("keep", 3, "how many epoch_N.pth stay on disk", 1),
        _int("workers", 4, "processes of the data loader; 0: none", 0, 256),
        _int("manual_seed", 321, "seed of everything random in training", 0, 2**32 - 1),
        _path("exp_root", "exp", "folder that all results go to"),
        _str("name", "", "folder added to the results' place, to keep several runs apart"),
    ),
    "EVALUATE": (
        _bool("evaluate", True, "validate while training"),
        _bool("SubEpoch_val", True, "validate in the middle of an epoch too"),
        _bool("fix_random_seed_val", True, "the same validation episodes in every epoch"),
        _int("batch_size_val", None, "episodes evaluated at once; null: by the picture's size", 1),
        _bool("resized_val", True, "resize to val_size x val_size; False: keep the aspect, pad"),
        _bool("ori_resize", True, "score at the picture's own size; False: at val_size"),
        _int("episodes", None, "episodes of a run (pascal 1000, coco 10000, fss 2400; 200)", 1),
        _int("runs", 10, "runs with one seed each", 1),
        Key("seeds", "ints", (510, 365, 382, 322, 988, 98, 742, 17, 595, 106), "seeds of the runs",
            low=0, high=2**32 - 1),
        _float("cache_gb", None, "budget for kept encodings; null: chosen from what is free", 0,
               1e6),
        _path("weight", None, "checkpoint to evaluate; null: best.pth of the run's folder"),
    ),
    "Method": (
        _str("arch", "HDMNet", "HDMNet, HSNet, PSPNet (the base learner), or one of your own"),
        Key("backbone", "str", "resnet50", "encoder; timm/<name>: any of timm's",
            choices=("resnet50", "resnet18", "resnet101", "resnet152", "vgg16"), prefix="timm/"),
        _pick("stem", ("deep", "7x7"), "ResNet: three 3x3 convs or one 7x7"),
        _int("width", 64, "base width of the encoder; narrow for small work", 4, 256),
        _path("pretrained", None, "encoder weights: a file, torchvision, timm, or none for random"),
        _path("base_weight", None, "stage-1 checkpoint; null: where train_base.py writes it"),
        _int("stages", 3, "stages of the pyramid", 1, 4),
        _pick("matching", ("correlation", "attention"), "Eq. 4-5, or Eq. 2 with masked keys"),
        _pick("hierarchy", ("decoupled", "stacked"), "self-attention apart from or mixed with"
              " matching"),
        _bool("distill", True, "distil correlation maps between adjacent stages"),
        _bool("ensemble", True, "fuse the result with the base learner's"),
        _float("temperature", 1.0, "temperature T of the distillation", 1e-3, 1e3),
        _bool("block_relu", True, "keep the residual blocks' last ReLU in the features taken"),
        _bool("mask_support", True, "hide the support's background; False: mask of ones"),
        _pick("kernel4d", ("center_pivot", "separable", "full"), "HSNet: 4D convolution kernel"),
        _pick("hyper_layers", ("all", "shallow", "deep"), "HSNet: features correlated at a level"),
        Key("pyramid", "ints", (8, 16, 32), "HSNet: strides of the levels in use",
            choices=(8, 16, 32)),
        _int("kshot_trans_dim", 2, "hidden width of the K-shot reweighting", 1, 1024),
        _pick("fidelity", ("released", "corrected"), "published behaviour, or its mistakes mended"),
        _pick("compute", ("fast", "textbook"), "rewritten or literal equations; rounding differs"),
        _pick("amp", ("off", "bf16", "fp16"), "mixed precision"),
        _bool("tf32", False, "TF32 matrix products on GPUs that have them"),
        _pick("compile", ("off", "default", "max-autotune"), "torch.compile mode"),
    ),
}  # fmt: skip

_OURS = ("HDMNet", "HSNet", "PSPNet")
# What gives trained weights their meaning: role, keys, the architectures that read them (all).
# util/weights/identity.py says which roles count when weights are loaded for what.
#   encoder    the same tensors make another encoder
#   network    ... another network over it
#   objective  what was minimised: the network computes the same, figures belong to it all the same
#   pictures   which pictures were trained on
#   course     the order and size of steps: a resumed run keeps them
#   classes    together decide the classes trained on, which are compared by their names
ROLES: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("encoder", ("backbone", "stem", "width"), ()),
    ("network", ("arch",), ()),
    ("network", ("mask_support",), ("HDMNet", "HSNet")),
    ("network", ("stages", "matching", "hierarchy", "ensemble", "block_relu", "fidelity",
                 "kshot_trans_dim"), ("HDMNet",)),
    ("network", ("kernel4d", "hyper_layers", "pyramid"), ("HSNet",)),
    ("objective", ("distill", "temperature"), ("HDMNet",)),
    ("pictures", ("protocol",), ()),
    ("course", ("shot", "optimizer", "manual_seed", "min_pixels", "ann_type"), ()),
    ("classes", ("data_set", "split", "folds", "class_names", "use_split_coco", "split_lists",
                 "trained_on"), ()),
)  # fmt: skip

_MEANING = {name: (role, readers) for role, names, readers in ROLES for name in names}

KEYS: dict[str, Key] = {
    key.name: replace(key, section=section, role=role, readers=readers)
    for section, keys in SECTIONS.items()
    for key in keys
    for role, readers in [_MEANING.get(key.name, ("", ()))]
}

# Sections of PFENet's, BAM's and HDMNet's files whose keys are looked up like any other.
FOREIGN_SECTIONS = ("Distributed", "Test_Finetune", "TEST")

# Keys of theirs without a meaning here: the values that change nothing (None: all), and what to
# know or do. Another value is refused with the same sentence, since ignoring it would mislead.
_NEVER_MIND = None
IGNORED: dict[str, tuple[tuple[Any, ...] | None, str]] = {
    "classes": (_NEVER_MIND, "the number of classes follows from data_set and split"),
    "base_data_root": (_NEVER_MIND, "base annotations are made on the fly"),
    "train_gpu": (_NEVER_MIND, "the number of GPUs is given to train.sh or torchrun"),
    "save_path": (_NEVER_MIND, "results go to a folder under exp_root; name keeps runs apart"),
    "result_path": (_NEVER_MIND, "results go to a folder under exp_root; name keeps runs apart"),
    "snapshot_path": (_NEVER_MIND, "checkpoints go to a folder under exp_root"),
    "seed_deterministic": (_NEVER_MIND, "runs on a CPU are always deterministic"),
    "index_split": (_NEVER_MIND, "the model itself names its parameter groups"),
    "merge_tau": (_NEVER_MIND, "the base map is fused by its sum over classes"),
    "viz": (_NEVER_MIND, "pictures go to TensorBoard"),
    "visualizer": (_NEVER_MIND, "pictures go to TensorBoard"),
    "dist_url": (_NEVER_MIND, "torchrun sets up the processes"),
    "dist_backend": (_NEVER_MIND, "NCCL on GPUs, gloo on CPUs"),
    "multiprocessing_distributed": (_NEVER_MIND, "torchrun sets up the processes"),
    "world_size": (_NEVER_MIND, "torchrun sets up the processes"),
    "rank": (_NEVER_MIND, "torchrun sets up the processes"),
    "opt_level": (_NEVER_MIND, "write amp: bf16 or amp: fp16 for mixed precision"),
    "keep_batchnorm_fp32": (_NEVER_MIND, "write amp: bf16 or amp: fp16 for mixed precision"),
    "loss_scale": (_NEVER_MIND, "amp: fp16 scales the loss by itself"),
    "use_apex": ((False, None), "remove it and write amp: bf16 or amp: fp16 instead"),
    "resume": ((None, ""), "remove it and pass --resume FILE (or auto) to train.py instead"),
    "start_epoch": ((0, None), "remove it; --resume FILE (or auto) knows where a run stopped"),
    "zoom_factor": ((8, None), "remove it; outputs always have the size of the input"),
    "low_fea": (("layer2", None), "remove it; the Gram matrices are always those of layer2"),
    "merge": (("final", None), "remove it; the fusion with the base learner is always 'final'"),
    "aux_weight": ((1, None), "write aux_weight1 (distillation) and aux_weight2 instead"),
    "ppm_scales": ((), "remove it with PFENet's other keys; this project has HDMNet and HSNet"),
    "fp16": ((False, None), "remove it and write amp: fp16 instead"),
}


def markdown() -> str:
    """The table of all keys, for docs/config.md."""
    lines = []
    for section, keys in SECTIONS.items():
        lines += [f"### {section}", "", "| key | default | takes | |", "|---|---|---|---|"]
        for key in keys:
            default = "null" if key.default is None else key.default
            default = list(default) if isinstance(default, tuple) else default or repr(default)
            takes = key.expects() + (" or null" if key.null else "")
            lines.append(f"| `{key.name}` | {default} | {takes} | {key.doc} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())
