"""Stage 1's score: the base learner on whole pictures."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.data import Subset

from model.layers import size_of
from util.config import Config
from util.data import transform
from util.data.dataset import PictureDataset
from util.data.index import FoldIndex
from util.data.loader import whole
from util.evaluate.metrics import ClassCounts
from util.runtime import distributed
from util.runtime.bars import progress
from util.runtime.errors import FewShotError
from util.runtime.workers import read_ahead


@torch.inference_mode()
def base_counts(
    model: nn.Module,
    cfg: Config,
    index: FoldIndex,
    device: torch.device,
    heed: Callable[[], None] = lambda: None,
) -> ClassCounts:
    """Pixel counts of the base classes over the pictures of ``index`` that show one, at the
    pictures' own size; shared among processes, each picture once. heed: called after every picture;
    may raise Interrupted. Raises FewShotError for a model that puts out numbers that are not
    finite."""
    mine = sorted(set(index.entries))[distributed.rank() :: distributed.world_size()]
    pictures = read_ahead(
        Subset(PictureDataset(cfg, index), mine), min(cfg.workers, len(mine)), batch_size=None
    )
    lut = None if index.binary else torch.from_numpy(cfg.fold.lut()).to(device)
    counts = ClassCounts(1, cfg.num_base + 1, device)
    finite = torch.ones((), dtype=torch.bool, device=device)
    model.eval()
    failure = None
    try:
        for picture in progress(whole(pictures), len(mine), "validation"):
            logits = model(transform.normalise_batch(picture.image.to(device)[None]))
            finite &= logits.isfinite().all()
            logits = transform.restore(logits, picture.content, size_of(picture.target))
            target = picture.target.to(device).long()
            if lut is not None:
                target = lut[target]
            else:  # binary masks show the one class of their folder
                number = cfg.fold.base_index(index.present[picture.position][0]) + 1
                target = target.masked_fill(target == 1, number)
            counts.add(0, logits[0].argmax(0), target)
            heed()
    except FewShotError as error:
        failure = error
    distributed.agree(failure)
    if not all(distributed.gather_objects(bool(finite))):
        raise FewShotError("the base learner's output in validation is not finite")
    counts.reduce()
    return counts
