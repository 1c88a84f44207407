r"""CvT-13 x 8 frames with HaViT's dictionary of external tokens.

Paper: HaViT, Table 7: top-1 76.6 % without and 77.4 % with the dictionary on Kinetics-400, from ImageNet weights. The
paper does not say how CvT is extended to video. Here the last stage attends over all frames.
As in the paper: python main.py --config=configs/cvt_13.py --config.data.root=DIR --config.data.num_classes=N \
    --config.init.weights=microsoft/cvt-13
From scratch: python main.py --config=configs/cvt_13.py --config.data.root=DIR --config.data.num_classes=N
guess: the paper says ImageNet and does not name weights. Here: those of CvT's authors for ImageNet-1k.
Rows of the paper's tables: python -m benchmarks.tables havit/7 --config.data.root=DIR (docs/papers/havit.md)

GELU as in Hugging Face's port:    --config.model.gelu=exact
Joint attention in no/every stage: --config.model.joint=none|all
"""

from configs.base import base
from configs.havit_b16 import recipe
from configs.sources import cite, guess


def get_config():
    config = recipe(base("cvt"))
    cite(
        config,
        "microsoft/CvT, lib/models/cls_cvt.py: QuickGELU, and 1/sqrt(d) of the stage",
        model=dict(gelu="quick", scale="width"),
    )
    cite(config, "CvT, Table 2: CvT-13", model=dict(size="CvT-13", patch_size=4, depths=(1, 2, 10)))
    cite(
        config,
        "microsoft/CvT, lib/config/default.py: INPUT.MEAN and INPUT.STD",
        model=dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    )
    guess(
        config,
        "HaViT does not say how CvT is extended to video",
        "the last stage attends over all frames",
        model=dict(joint="last"),
    )
    guess(config, "HaViT gives no number of frames for Table 7", "8, as in its Table 2", data=dict(frames=8))
    return config
