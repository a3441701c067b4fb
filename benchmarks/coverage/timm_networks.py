"""At least one network of every family of timm that is still in use, the smallest."""

from __future__ import annotations

import importlib
from functools import partial

from torch import nn

from benchmarks.coverage.case import Case, images

NETWORKS: dict[str, tuple[str, ...]] = {
    "64": (
        "convnext_atto", "regnetx_002", "regnety_002", "efficientnet_b0", "efficientnet_lite0", "mobilenetv3_small_050",
        "mobilenetv4_conv_small", "ghostnet_050", "ghostnetv2_100", "hrnet_w18_small", "densenet121", "dpn48b", "repvgg_a0",
        "resnest14d", "skresnet18", "selecsls42b", "dla34", "ese_vovnet19b_slim", "nfnet_l0", "eca_nfnet_l0", "tresnet_m",
        "xception41", "mobileone_s0", "convmixer_768_32", "tinynet_e", "res2net50_26w_4s", "gernet_s",
        "lcnet_050", "rexnet_100", "cspdarknet53", "mixnet_s", "hgnet_tiny", "inception_next_atto", "repvit_m0_9",
        "starnet_s1", "resnetv2_50", "mobilevitv2_050", "efficientvit_b0", "poolformer_s12", "edgenext_xx_small",
        "fastvit_t8", "pvt_v2_b0",
    ),
    "96": ("inception_v3", "inception_v4", "inception_resnet_v2", "legacy_xception"),
    "128": ("mobilevit_xxs", "maxvit_pico_rw_256", "coatnet_pico_rw_224", "mobilenetv4_hybrid_medium"),
    "224": (
        "vit_tiny_patch16_224", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "pit_ti_224", "cait_xxs24_224",
        "xcit_nano_12_p16_224", "levit_128s", "mixer_s32_224", "resmlp_12_224", "gmlp_ti16_224", "efficientformer_l1",
        "efficientformerv2_s0", "volo_d1_224", "beit_base_patch16_224", "visformer_tiny", "sequencer2d_s", "convit_tiny",
        "davit_tiny", "twins_pcpvt_small", "tiny_vit_5m_224",
    ),
    "240": ("crossvit_tiny_240",),
    "256": ("swinv2_tiny_window8_256", "halonet26t", "bat_resnext26ts"),
}  # fmt: skip
"""Pixels per side -> names."""
FITTED = {"maxvit_pico_rw_256", "coatnet_pico_rw_224"}
"""Networks that are built for the size of their input."""


def _build(name: str, size: int) -> nn.Module:
    create = importlib.import_module("timm").create_model  # not seen by mypy, which would read the whole package
    return create(name, pretrained=False, **({"img_size": size} if name in FITTED else {}))


def cases() -> list[Case]:
    """All networks of timm."""
    sized = [(name, int(size)) for size, names in NETWORKS.items() for name in names]
    return [Case(f"timm/{name}", partial(_build, name, size), images(size), needs="timm") for name, size in sized]
