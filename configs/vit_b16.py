r"""ViT-B/16 on each of 8 frames, with averaged features: a baseline that is blind to the order of frames.

Paper: MSCA, Table 2: top-1 75.65 %, top-5 92.19 % on Kinetics-400, ten clips x three crops, from ImageNet-21k weights.
Cost: 86,106,256 parameters, 140.5 G multiply-adds per view (134.8 G in products with weights).
As in the paper: python main.py --config=configs/vit_b16.py --config.data.root=DIR --config.data.num_classes=N \
    --config.init.weights=ViT-B_16.npz --config.init.allow="('pre_logits',)"
From scratch: python main.py --config=configs/vit_b16.py --config.data.root=DIR --config.data.num_classes=N
ViT-B_16.npz is Google's ViT of ImageNet-21k (MSCA, section 4; README.md of VideoNetworks/TokShift-Transformer).
The recipe of TokenShift's code, whose authors report top-1 76.02 %: --config=configs/vit_b16.py:tokenshift
"""

from configs.base import base
from configs.loading import require
from configs.msca_b16 import recipe


def get_config(variant: str = "msca"):
    require(
        variant in ("msca", "tokenshift"), f"the variant after the colon must be msca or tokenshift, not {variant!r}"
    )
    return recipe(base("vit"), "paper" if variant == "msca" else "released")
