"""Every configuration key: its section, type, default, range or choices, and one line of help.

A new key is one line here, and one word in :data:`ROLES` when trained weights depend on it. Names
follow PFENet, BAM and HDMNet; :data:`IGNORED` says what becomes of their keys that have no meaning
in this project.
"""

from __future__ import annotations

from typing import Any

from util.config.keys import Key, key, label, path, pick

# fmt: off


class Data:
    """Section ``DATA``: which pictures, which classes."""

    data_set: str = key("pascal", "pascal, coco, fss, demo, or a name of your own")
    data_root: path = key(None, "folder that the paths in the lists start from (data/<data_set>)")
    train_list: path | None = key(
        None, "pairs to train on; null: the data set's list or class folders")
    val_list: path | None = key(
        None, "pairs to evaluate on; null: the data set's list or class folders")
    class_names: list[str] | None = key(
        None, "class names, ids 1, 2, ...; null: the data set's own")
    folds: list[list[label]] | None = key(None, "classes (ids or names) that each fold holds out")
    split_lists: path | None = key(None, "fss: folder with the class lists of its three parts")
    trained_on: str | None = key(None, "data set that the model was trained on, if another")
    use_split_coco: bool = key(True, "COCO: fold i holds out classes 4k+i+1, else 20i+1..20i+20")
    protocol: str = pick(("bam", "pfenet", "hsnet"), "which training pictures a fold keeps")
    min_pixels: int = key(2048, "pixels of a class that a picture must show to be listed", 1)
    ann_type: str = pick(("mask", "bbox"), "supports carry their mask or only its bounding box")
    allow_outside_root: bool = key(False, "let list entries lead out of data_root")


class Train:
    """Section ``TRAIN``: the fold, the pictures' size and changes, the optimiser, the files."""

    split: int = key(0, "fold whose classes are held out", 0)
    shot: int = key(1, "supports of an episode", 1, 100)
    train_h: int = key(473, "height of training pictures", 16, 4096)
    train_w: int = key(473, "width of training pictures", 16, 4096)
    val_size: int = key(473, "side of evaluation pictures", 16, 4096)
    augment: bool = key(True, "random scale, rotation, blur and flip; False: only the resize")
    blur: bool = key(True, "blur of 5 pixels, half of the time, as part of the augmentation")
    scale_min: float = key(0.9, "smallest random scale", 0.01, 10)
    scale_max: float = key(1.1, "largest random scale", 0.01, 10)
    rotate_min: float = key(-10, "smallest random rotation in degrees", -180, 180)
    rotate_max: float = key(10, "largest random rotation in degrees", -180, 180)
    ignore_label: int = pick((255,), "mask value that is neither object nor background")
    padding_label: int = pick((255,), "mask value of what lies outside the picture")
    batch_size: int = key(4, "episodes (stage 1: pictures) of a step on each GPU", 1)
    accumulate: int = key(1, "steps whose gradients are summed before the weights move", 1)
    optimizer: str = key(
        None, "null: adamw, PSPNet sgd, HSNet adam", choices=("adamw", "sgd", "adam"))
    base_lr: float = key(1e-4, "learning rate of the parameter groups with scale 1", 1e-12, 100)
    power: float = key(0.9, "exponent of the poly decay; 0: constant learning rate", 0, 100)
    momentum: float = key(0.9, "momentum of sgd", 0, 0.9999)
    weight_decay: float = key(0.01, "weight decay", 0, 1)
    warmup: bool = key(False, "raise the learning rate linearly over the first warmup_step")
    warmup_step: int = key(500, "iterations of the warm-up", 1)
    epochs: int = key(200, "passes over the training list", 1)
    max_iterations: int | None = key(
        None, "end (and decay) after so many steps instead of epochs", 1)
    stop_interval: int = key(75, "epochs without a better result before stopping; 0: never", 0)
    aux_weight1: float = key(1.0, "weight of the distillation loss", 0, 1000)
    aux_weight2: float = key(1.0, "weight of the base learner's loss", 0, 1000)
    fix_bn: bool = key(True, "keep batch norms in evaluation mode")
    freeze_encoder: bool = key(False, "stage 1: train pyramid pooling and base learner only")
    fusion_lr: float = key(
        10.0, "HDMNet: learning rate of the fusion with the base learner, over base_lr", 0, 1000)
    absent: float = key(
        0.0, "share of the training episodes whose query does not show the class asked for", 0, 0.9)
    sync_bn: bool = key(True, "share batch-norm statistics between GPUs where they are learned")
    print_freq: int = key(10, "iterations between two lines of the log", 1)
    save_freq: int = key(10, "epochs between two kept checkpoints (epoch_N.pth)", 1)
    save_every: int = key(0, "iterations between two resumable checkpoints; 0: off", 0)
    save_minutes: float = key(0.0, "minutes between two resumable checkpoints; 0: off", 0, 1e6)
    keep: int = key(3, "how many epoch_N.pth stay on disk", 1)
    workers: int = key(4, "processes of the data loader; 0: none", 0, 256)
    manual_seed: int = key(321, "seed of everything random in training", 0, 2**32 - 1)
    exp_root: path = key("exp", "folder that all results go to")
    name: str = key("", "folder added to the results' place, to keep several runs apart")


class Evaluate:
    """Section ``EVALUATE``: validation while training, and the runs of an evaluation."""

    evaluate: bool = key(True, "validate while training")
    SubEpoch_val: bool = key(True, "validate in the middle of an epoch too")
    fix_random_seed_val: bool = key(True, "the same validation episodes in every epoch")
    batch_size_val: int | None = key(
        None, "episodes evaluated at once; null: by the picture's size", 1)
    resized_val: bool = key(True, "resize to val_size x val_size; False: keep the aspect, pad")
    ori_resize: bool = key(True, "score at the picture's own size; False: at val_size")
    episodes: int = key(None, "episodes of a run (pascal 1000, coco 10000, fss 2400; 200)", 1)
    runs: int = key(10, "runs with one seed each", 1)
    seeds: list[int] = key(
        (510, 365, 382, 322, 988, 98, 742, 17, 595, 106), "seeds of the runs", 0, 2**32 - 1)
    merge: str = pick(("final", "base"), "--generalized: the novel class over the base learner's"
                      " labels, or in their background")
    merge_tau: float = key(0.9, "--generalized: the novel class is above this probability", 0, 1)
    cache_gb: float | None = key(
        None, "budget for kept encodings; null: chosen from what is free", 0, 1e6)
    weight: path | None = key(None, "checkpoint to evaluate; null: best.pth of the run's folder")


class Method:
    """Section ``Method``: the network, its options, and how it is computed."""

    arch: str = key("HDMNet", "HDMNet, HSNet, PSPNet (the base learner), or one of your own")
    backbone: str = key(
        "resnet50", "encoder; timm/<name>: any of timm's", prefix="timm/",
        choices=("resnet50", "resnet18", "resnet101", "resnet152", "vgg16"))
    stem: str = pick(("deep", "7x7"), "ResNet: three 3x3 convs or one 7x7")
    width: int = key(64, "base width of the encoder; narrow for small work", 4, 256)
    pretrained: path = key(
        None, "encoder weights: a file, torchvision, timm, package, or none for random")
    base_weight: path | None = key(
        None, "stage-1 checkpoint; null: where train_base.py writes it")
    stages: int = key(3, "stages of the pyramid", 1, 4)
    matching: str = pick(("correlation", "attention"), "Eq. 4-5, or Eq. 2 with masked keys")
    hierarchy: str = pick(
        ("decoupled", "stacked"), "self-attention apart from or mixed with matching")
    distill: bool = key(True, "distil correlation maps between adjacent stages")
    ensemble: bool = key(True, "fuse the result with the base learner's")
    temperature: float = key(1.0, "temperature T of the distillation", 1e-3, 1e3)
    block_relu: bool = key(True, "keep the residual blocks' last ReLU in the features taken")
    mask_support: bool = key(True, "hide the support's background; False: mask of ones")
    kernel4d: str = pick(("center_pivot", "separable", "full"), "HSNet: 4D convolution kernel")
    hyper_layers: str = pick(("all", "shallow", "deep"), "HSNet: features correlated at a level")
    pyramid: list[int] = key(
        (8, 16, 32), "HSNet: strides of the levels in use", choices=(8, 16, 32))
    backbone_lr: float = key(
        0.0, "HSNet: learning rate of its backbone, over base_lr; 0: frozen", 0, 1000)
    kshot_trans_dim: int = key(2, "hidden width of the K-shot reweighting", 1, 1024)
    own_class: str = pick(
        ("left_out", "unlearned"), "the episode's class in training's base map: summed without it,"
        " or a softmax without it")
    object_above: float = key(
        0.5, "the probability above which a place is object (published: 0.5)", 0.01, 0.99)
    fidelity: str = pick(("released", "corrected"), "published behaviour, or its mistakes mended")
    compute: str = pick(("fast", "textbook"), "rewritten or literal equations; rounding differs")
    amp: str = pick(("off", "bf16", "fp16"), "mixed precision")
    tf32: bool = key(False, "TF32 matrix products on GPUs that have them")
    compile: str = pick(("off", "default", "max-autotune"), "torch.compile mode")


# fmt: on


class Settings(Data, Train, Evaluate, Method):
    """Every key by its name; names are unique over the sections."""


SECTIONS: dict[str, tuple[Key, ...]] = {
    name: tuple(found for found in vars(section).values() if isinstance(found, Key))
    for name, section in zip(
        ("DATA", "TRAIN", "EVALUATE", "Method"), Settings.__bases__, strict=True
    )
}
KEYS: dict[str, Key] = {key.name: key for keys in SECTIONS.values() for key in keys}

# What gives trained weights their meaning; a method's requirements (model/registry.py) say whether
# it reads a key. util/weights/identity.py says which roles count when weights are loaded for what.
#   encoder    the same tensors make another encoder
#   network    ... another network over it
#   objective  what was minimised: the network computes the same, figures belong to it all the same
#   pictures   which pictures were trained on
#   course     the order and size of steps: a resumed run keeps them
#   classes    together decide the classes trained on, which are compared by their names
ROLES: dict[str, tuple[str, ...]] = {
    "encoder": ("backbone", "stem", "width"),
    "network": (
        "arch", "mask_support", "stages", "matching", "hierarchy", "ensemble", "block_relu",
        "fidelity", "kshot_trans_dim", "kernel4d", "hyper_layers", "pyramid",
    ),
    "objective": ("distill", "temperature", "own_class", "backbone_lr", "absent"),
    "pictures": ("protocol",),
    "course": (
        "shot", "optimizer", "manual_seed", "min_pixels", "ann_type", "freeze_encoder", "fusion_lr",
    ),
    "classes": (
        "data_set", "split", "folds", "class_names", "use_split_coco", "split_lists", "trained_on",
    ),
}  # fmt: skip
for _role, _names in ROLES.items():
    for _name in _names:
        KEYS[_name].role = _role

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
    "aux_weight": ((1, None), "write aux_weight1 (distillation) and aux_weight2 instead"),
    "ppm_scales": ((), "remove it with PFENet's other keys; this project has HDMNet and HSNet"),
    "fp16": ((False, None), "remove it and write amp: fp16 instead"),
}
