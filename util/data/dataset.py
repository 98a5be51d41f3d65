"""Data sets for the three loops: episodes (stage 2), labelled pictures (stage 1), evaluation."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from util.config import Config
from util.data.episodes import EpisodeSampler
from util.data.index import FoldIndex
from util.data.transform import (
    base_train_transform,
    normalise,
    object_mask,
    planes,
    read_pair,
    train_transform,
    val_transform,
)

NOWHERE = 2  # a value that no binary mask holds


class _Epoch:
    """The epoch's number, in shared memory: worker processes that live on see it change."""

    def __init__(self) -> None:
        self._value = torch.zeros((), dtype=torch.int64).share_memory_()

    def set(self, number: int) -> None:
        self._value.fill_(number)

    def get(self) -> int:
        return int(self._value)


def _generator(seed: int, epoch: int, item: int) -> np.random.Generator:
    """For augmentation; the last word keeps it apart from the episode's own generator."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch, item, 1])))


def _base_targets(labels: np.ndarray, lut: np.ndarray | None, number: int) -> Tensor:
    """int64 [H, W] in 0..N and 255: mask values through a table; binary masks become ``number``."""
    targets = labels if lut is None else lut[labels]
    targets = torch.from_numpy(targets.astype(np.int64))
    return targets if lut is not None else targets.masked_fill_(targets == 1, number)


class EpisodeDataset(Dataset):
    """Training episodes of the fold's base classes, one an entry of ``index``.

    Item ``e`` is a dict: query_image float32 [3, H, W]; query_mask int64 [H, W] in {0, 1, 255};
    base_mask int64 [H, W] in 0..N and 255; support_images float32 [K, 3, H, W]; support_masks
    uint8 [K, H, W] in {0, 1, 255}; class_index, 0-based among the base classes; class_id; files,
    the query's picture first. K is ``shot``, or the configured one. An item depends on
    (``manual_seed``, epoch, ``e``) only. Raises :class:`FewShotError` naming a file that cannot be
    used.
    """

    def __init__(self, cfg: Config, index: FoldIndex, shot: int | None = None) -> None:
        self.cfg, self.index, self.fold = cfg, index, cfg.fold
        self.sampler = EpisodeSampler(
            index, self.fold.base, shot or cfg.shot, cfg.manual_seed, cfg.absent
        )
        self.transform = train_transform(cfg)
        self._lut = None if index.binary else self.fold.lut()
        self._epoch = _Epoch()

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Other episodes and other augmentation from now on."""
        self._epoch.set(epoch)

    def __getitem__(self, e: int) -> dict[str, Any]:
        epoch = self._epoch.get()
        episode = self.sampler.episode(epoch, e)
        rng = _generator(self.cfg.manual_seed, epoch, e)
        label = self.index.label(episode.class_id)
        class_index = self.fold.base_index(episode.class_id)
        # A binary mask is that of its folder's class, which may not be the one asked for.
        shown = self.index.present[episode.query]
        wanted = NOWHERE if self.index.binary and episode.class_id not in shown else label

        image, labels = self.transform(rng, *self._read(episode.query))
        images, masks = [], []
        for position in episode.supports:
            support, mask = self._read(position)
            # Boxes belong to the upright object: they are drawn before it is turned.
            mask = object_mask(mask, label, self.cfg.ann_type)
            support, mask = self.transform(rng, support, mask)
            images.append(normalise(support))
            masks.append(torch.from_numpy(np.ascontiguousarray(mask)))
        return {
            "query_image": normalise(image),
            "query_mask": torch.from_numpy(object_mask(labels, wanted).astype(np.int64)),
            "base_mask": _base_targets(labels, self._lut, self.fold.base_index(shown[0]) + 1),
            "support_images": torch.stack(images),
            "support_masks": torch.stack(masks),
            "class_index": class_index,
            "class_id": episode.class_id,
            "files": [str(self.index.pairs[p].image) for p in (episode.query, *episode.supports)],
        }

    def _read(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        return read_pair(*self.index.pairs[position], binary=self.index.binary)


class SegmentationDataset(Dataset):
    """Stage 1: augmented crops with the base classes' numbers.

    Item ``i`` is a dict: image float32 [3, H, W]; mask int64 [H, W] in 0..N and 255 (novel classes
    are background); files, the picture. It depends on (``manual_seed``, epoch, ``i``) only. Raises
    :class:`FewShotError` naming a file that cannot be used.
    """

    def __init__(self, cfg: Config, index: FoldIndex) -> None:
        self.cfg, self.index, self.fold = cfg, index, cfg.fold
        # A picture that is an entry for several classes (protocol hsnet) is one item here.
        self.positions = list(dict.fromkeys(index.entries))
        self.transform = base_train_transform(cfg)
        self._lut = None if index.binary else self.fold.lut()
        self._epoch = _Epoch()

    def __len__(self) -> int:
        return len(self.positions)

    def set_epoch(self, epoch: int) -> None:
        """Other augmentation from now on."""
        self._epoch.set(epoch)

    def __getitem__(self, i: int) -> dict[str, Any]:
        position = self.positions[i]
        pair = self.index.pairs[position]
        rng = _generator(self.cfg.manual_seed, self._epoch.get(), i)
        image, labels = self.transform(rng, *read_pair(*pair, binary=self.index.binary))
        # Binary masks show one class, that of their folder.
        number = self.fold.base_index(self.index.present[position][0]) + 1
        return {
            "image": normalise(image),
            "mask": _base_targets(labels, self._lut, number),
            "files": [str(pair.image)],
        }


class Picture(NamedTuple):
    """One picture as the evaluation engine wants it; masks hold raw values (``index.label``)."""

    position: int
    image: Tensor  # uint8 [3, S, S] at evaluation size
    mask: Tensor  # uint8 [S, S], 255 in the padding
    target: Tensor  # uint8 [H, W] at original size
    content: tuple[int, int]  # height and width of the part of S x S that shows the picture


class PictureDataset(Dataset):
    """Evaluation: item ``position`` is the :class:`Picture` of ``index.pairs[position]``."""

    def __init__(self, cfg: Config, index: FoldIndex) -> None:
        self.index, self.transform = index, val_transform(cfg)

    def __len__(self) -> int:
        return len(self.index.pairs)

    def __getitem__(self, position: int) -> Picture:
        image, target = read_pair(*self.index.pairs[position], binary=self.index.binary)
        resized, mask = self.transform(image, target)
        return Picture(
            position,
            planes(resized),
            torch.from_numpy(mask),
            torch.from_numpy(target),
            self.transform.content(*target.shape),
        )
