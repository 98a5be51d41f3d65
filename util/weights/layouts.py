"""Renaming tables: weight files of the published projects -> names of this project.

A layout is data: names by which it is recognised, substitutions applied to every name in order,
and names that the models here have no use for.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

Rules = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Layout:
    """A published naming scheme.

    marks: patterns, each of which some name must match from its start; rules: (pattern,
    replacement), applied one after the other; ignored: patterns of names that are passed over.
    """

    name: str
    marks: tuple[str, ...]
    rules: Rules
    ignored: tuple[str, ...] = ()

    def recognises(self, names: Collection[str]) -> bool:
        return all(any(re.match(mark, name) for name in names) for mark in self.marks)

    def rename(self, name: str) -> str | None:
        """This project's name for a published one; None for a tensor that is passed over."""
        if any(re.match(pattern, name) for pattern in self.ignored):
            return None
        for pattern, replacement in self.rules:
            name = re.sub(pattern, replacement, name)
        return name


# A sequence conv, bn, relu, conv, bn, relu, … -> ConvNorm 0, 1, …
SEQUENCE: Rules = tuple(
    (rf"^(encoder\.(?:stem|parts\.\d))\.seq\.{3 * conv + offset}\.", rf"\1.{conv}.{part}.")
    for conv in range(3)
    for offset, part in ((0, "conv"), (1, "bn"))
)
BLOCKS: Rules = (
    (r"^layer(\d)\.(\d+)\.(conv|bn)(\d)\.", r"encoder.layer\1.\2.conv\4.\3."),
    (r"^layer(\d)\.(\d+)\.downsample\.0\.", r"encoder.layer\1.\2.downsample.conv."),
    (r"^layer(\d)\.(\d+)\.downsample\.1\.", r"encoder.layer\1.\2.downsample.bn."),
)
RESNET: Rules = ((r"^layer0\.", "encoder.stem.seq."), *SEQUENCE, *BLOCKS)
VGG: Rules = ((r"^layer(\d)\.", r"encoder.parts.\1.seq."), *SEQUENCE)
IMAGENET_RESNET: Rules = (
    *(
        (rf"^{kind}{conv + 1}\.", rf"encoder.stem.{conv}.{kind}.")
        for conv in range(3)
        for kind in ("conv", "bn")
    ),
    *BLOCKS,
)
# torchvision numbers the layers of VGG-16-BN through; parts start at these indices.
IMAGENET_VGG: Rules = tuple(
    (rf"^features\.{start + 3 * conv + offset}\.", rf"encoder.parts.{part}.{conv}.{kind}.")
    for part, (start, convs) in enumerate(((0, 2), (7, 2), (14, 3), (24, 3), (34, 3)))
    for conv in range(convs)
    for offset, kind in ((0, "conv"), (1, "bn"))
)
TRANSFORMER: Rules = (
    (r"^transformer\.mix_transformer\.cls\.", "decoder.head.seq."),
    (r"^transformer\.mix_transformer\.parse_layers\.(\d)\.", r"decoder.stages.\1.seq."),
    (r"^(decoder\..*)\.seq\.0\.", r"\1.0.conv."),
    (r"^(decoder\..*)\.seq\.1\.", r"\1.0.bn."),
    (r"^(decoder\..*)\.seq\.2\.", r"\1.1.conv."),
    (r"^(decoder\..*)\.seq\.3\.", r"\1.1.bn."),
    (r"^(decoder\.stages.*)\.seq\.4\.", r"\1.2.conv."),
    (r"^(decoder\.stages.*)\.seq\.5\.", r"\1.2.bn."),
    (r"^decoder\.head\.seq\.4\.", "decoder.head.2."),
    (r"^transformer\.mix_transformer\.match_layers\.(\d)\.0\.", r"matching.\1."),
    (r"^transformer\.mix_transformer\.match_layers\.(\d)\.1\.", r"matching.\1.merge."),
    (r"^transformer\.mix_transformer\.down_sample_layers\.(\d)\.0\.", r"pyramid.\1.embed."),
    (r"^transformer\.mix_transformer\.down_sample_layers\.(\d)\.1\.", r"pyramid.\1.layers.0."),
    (r"^transformer\.mix_transformer\.down_sample_layers\.(\d)\.2\.", r"pyramid.\1.layers.1."),
    (r"^transformer\.mix_transformer\.down_sample_layers\.(\d)\.3\.", r"pyramid.\1.norm."),
    (r"^(matching\.\d|pyramid.*)\.attn\.attn\.linear_q\.", r"\1.attn.project.query."),
    (r"^(matching\.\d|pyramid.*)\.attn\.attn\.linear_k\.", r"\1.attn.project.key."),
    (r"^(matching\.\d|pyramid.*)\.attn\.attn\.linear_v\.", r"\1.attn.project.value."),
    (r"^(matching\.\d|pyramid.*)\.attn\.attn\.linear_o\.", r"\1.attn.project.out."),
    (r"^(pyramid.*)\.attn\.sr\.", r"\1.attn.reduce."),
    (r"^(pyramid.*)\.attn\.", r"\1.attention."),
    (r"^(matching\.\d)\.attn\.", r"\1."),
    (r"\.ffn\.layers\.0\.", ".ffn.expand."),
    (r"\.ffn\.layers\.1\.", ".ffn.depthwise."),
    (r"\.ffn\.layers\.4\.", ".ffn.contract."),
)
HEAD: Rules = (
    (r"^ppm\.features\.(\d)\.1\.", r"head.pools.\1.conv."),
    (r"^ppm\.features\.(\d)\.2\.", r"head.pools.\1.bn."),
    (r"^cls\.0\.", "head.conv.conv."),
    (r"^cls\.1\.", "head.conv.bn."),
    (r"^cls\.4\.", "base_learner.conv."),
)
HDMNET: Rules = (
    *TRANSFORMER,
    *HEAD,
    (r"^base_learnear\.2\.", "base_learner.conv."),
    (r"^down_query\.0\.", "reduce_query."),
    (r"^down_supp\.0\.", "reduce_support."),
    (r"^query_merge\.0\.", "merge_query."),
    (r"^supp_merge\.0\.", "merge_support."),
    (r"^gram_merge\.", "ensemble.gram_merge."),
    (r"^cls_merge\.", "ensemble.base_merge."),
    (r"^kshot_rw\.0\.", "ensemble.reweight.reduce."),
    (r"^kshot_rw\.2\.", "ensemble.reweight.expand."),
)
# HSNet keeps torchvision's backbone under its own name, and its learner's blocks by stage.
HSNET: Rules = (
    (r"^hpn_learner\.encoder_layer4to3\.", "learner.mix.16."),
    (r"^hpn_learner\.encoder_layer3to2\.", "learner.mix.8."),
    (r"^hpn_learner\.encoder_layer4\.", "learner.squeeze.32."),
    (r"^hpn_learner\.encoder_layer3\.", "learner.squeeze.16."),
    (r"^hpn_learner\.encoder_layer2\.", "learner.squeeze.8."),
    (r"^hpn_learner\.", "learner."),
    (r"^backbone\.", ""),
)
PLAIN_VGG: Rules = ((r"^features\.", "encoder.features."),)

RESNET_MARK = r"layer1\.0\.conv1\."
VGG_MARK = r"layer4\.6\."
LAYOUTS = (
    Layout("HDMNet, ResNet", (r"transformer\.mix_", RESNET_MARK), (*RESNET, *HDMNET)),
    Layout("HDMNet, VGG", (r"transformer\.mix_", VGG_MARK), (*VGG, *HDMNET)),
    Layout("PSPNet, ResNet", (r"ppm\.features", r"cls\.4\.", RESNET_MARK), (*RESNET, *HEAD)),
    Layout("PSPNet, VGG", (r"ppm\.features", r"cls\.4\.", VGG_MARK), (*VGG, *HEAD)),
    Layout("ImageNet ResNet", (r"conv1\.", RESNET_MARK), IMAGENET_RESNET, (r"fc\.",)),
    Layout("ImageNet VGG-16-BN", (r"features\.0\.", r"features\.41\."), IMAGENET_VGG,
           (r"classifier\.", r"features\.43\.")),
    Layout("ImageNet VGG-16", (r"features\.0\.", r"features\.26\."), PLAIN_VGG,
           (r"classifier\.",)),
    Layout("HSNet, ResNet", (r"hpn_learner\.", rf"backbone\.{RESNET_MARK}"),
           (*HSNET, *IMAGENET_RESNET), (r"backbone\.fc\.",)),
    Layout("HSNet, VGG", (r"hpn_learner\.", r"backbone\.features\.26\."),
           (*HSNET, *PLAIN_VGG), (r"backbone\.classifier\.",)),
)  # fmt: skip
