"""CvT-13 x 8 frames with HaViT's dictionary of external tokens.

Paper: HaViT, Table 7: top-1 76.6 % without and 77.4 % with the dictionary on Kinetics-400, from ImageNet weights. The
paper does not say how CvT is extended to video. Here the last stage attends over all frames.
Command: python main.py --config=configs/cvt_13.py --config.data.root=DIR --config.data.num_classes=N
Rows of the paper's tables: python -m benchmarks.tables havit/7 --config.data.root=DIR (docs/papers/havit.md)

GELU as in Hugging Face's port:    --config.model.gelu=exact
Joint attention in no/every stage: --config.model.joint=none|all
"""

from configs import swin_t


def get_config():
    config = swin_t.get_config("cvt")
    config.data.frames = 8
    config.model.gelu = "quick"
    return config
