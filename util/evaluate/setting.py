"""What an evaluation is about, and what is kept of its pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from model.fewshot import FewShotModel
from util.config import Config
from util.data.dataset import Picture, PictureDataset
from util.data.episodes import EpisodeSampler
from util.data.index import FoldIndex
from util.data.transform import normalise_batch, object_mask
from util.evaluate.cache import ByteCache, budgets

PICTURE_SHARE = 0.1  # of the host's budget, for decoded pictures; a picture is cheap to read again
FROZEN_SHARE = 0.75  # of the budget between epochs; the rest serves within one epoch


class Setting:
    """The classes of one fold, their pictures, the device, and what is kept on it.

    index: the fold's evaluation index, whose classes the episodes are about. With ``keep_frozen``
    what depends on the frozen encoder alone is kept from one evaluation to the next, under the
    same byte budget (``cache_gb``): for validation while training. The encoder's weights must not
    change then (or call :meth:`forget`).
    """

    def __init__(
        self,
        cfg: Config,
        index: FoldIndex,
        device: torch.device | str = "cpu",
        keep_frozen: bool = False,
    ) -> None:
        self.cfg, self.index, self.device = cfg, index, torch.device(device)
        self.classes = tuple(sorted(index.per_class))
        # Raises when no class can form an episode: before training, not after its first epoch.
        EpisodeSampler(index, self.classes, cfg.shot, seed=0)
        self.dataset = PictureDataset(cfg, index)
        self.keep_frozen = keep_frozen
        room = budgets(self.device, cfg.cache_gb)
        self.picture_room = int(room[-1][1] * PICTURE_SHARE)
        room[-1] = (room[-1][0], room[-1][1] - self.picture_room)
        kept = FROZEN_SHARE if keep_frozen else 0.0
        self.frozen = ByteCache([(place, int(size * kept)) for place, size in room])
        self.prepared_room = [(place, size - int(size * kept)) for place, size in room]
        self.content: dict[int, tuple[int, int]] = {}
        self.said: set[str] = set()

    def forget(self) -> None:
        """Drop what is kept between runs: the encoder has changed."""
        self.frozen.clear()

    def on_device(self, picture: Picture) -> Tensor:
        """The picture as network input [1, 3, H, W], normalised."""
        return normalise_batch(picture.image.to(self.device, non_blocking=True))[None]

    def support_mask(self, picture: Picture, class_id: int, model: FewShotModel) -> Tensor:
        """uint8 [1, H, W]: 1 object, 0 rest, 255 ignore; where ``model`` wants it."""
        label = self.index.label(class_id)
        mask = torch.from_numpy(object_mask(picture.mask.numpy(), label, self.cfg.ann_type))[None]
        if self.device.type == "cuda":
            mask = mask.pin_memory()
        return mask if model.host_masks else mask.to(self.device, non_blocking=True)

    def target(self, picture: Picture) -> Tensor:
        """Class ids to score against, at the original or the input size."""
        mask = picture.target if self.cfg.ori_resize else picture.mask
        return mask.to(self.device, non_blocking=True)
