r"""TokenShift-B/16 x 8 frames: a frame-wise ViT whose class tokens exchange channels with neighbouring frames.

Paper: Zhang et al., "Token Shift Transformer for Video Classification", 2021. The model behaves as its authors' code.
They report top-1 77.28 % on Kinetics-400; MSCA's Table 2 reports top-1 76.37 %, top-5 92.82 % for TokenShift. Both with
ten clips x three crops.
Cost: 86,106,256 parameters, 140.5 G multiply-adds per view (134.8 G in products with weights).
As in the paper: python main.py --config=configs/tokenshift_b16.py --config.data.root=DIR --config.data.num_classes=N \
    --config.init.weights=ViT-B_16.npz --config.init.allow="('pre_logits',)"
From scratch: python main.py --config=configs/tokenshift_b16.py --config.data.root=DIR --config.data.num_classes=N
ViT-B_16.npz is Google's ViT of ImageNet-21k (README.md of VideoNetworks/TokShift-Transformer).
The recipe of MSCA's Table 2 (12 epochs, a shorter side from 244 pixels): --config=configs/tokenshift_b16.py:msca
"""

from configs.base import base
from configs.loading import require
from configs.msca_b16 import CODE, FILES, recipe
from configs.sources import cite


def get_config(variant: str = "released"):
    require(variant in ("released", "msca"), f"the variant after the colon must be released or msca, not {variant!r}")
    config = base("tokenshift")
    cite(config, f"{FILES['tokenshift']}: SHIFT_DIV", model=dict(fold=4))
    cite(config, f"{CODE}, vit_models/modeling_tokshift.py: zeros_like", model=dict(boundary="zero"))
    return recipe(config, "paper" if variant == "msca" else "released")
