r"""Video Swin-T x 16 frames with HaViT's dictionary of external tokens.

Paper: HaViT, Table 7: top-1 78.4 % without and 78.9 % with the dictionary on Kinetics-400, from ImageNet weights. The
paper does not say how Swin-T is extended to video. This is Video Swin-T, as torchvision's `swin3d_t`.
Cost: 28,158,070 parameters without the dictionary.
As in the paper: python main.py --config=configs/swin_t.py --config.data.root=DIR --config.data.num_classes=N \
    --config.init.weights=timm/swin_tiny_patch4_window7_224.ms_in1k --config.init.tube=average
From scratch: python main.py --config=configs/swin_t.py --config.data.root=DIR --config.data.num_classes=N
guess: the paper says ImageNet and does not name weights. Here: those of Swin's authors for ImageNet-1k, inflated as
Video Swin's authors do.
Rows of the paper's tables: python -m benchmarks.tables havit/7 --config.data.root=DIR (docs/papers/havit.md)

Patches of one frame:   --config.model.patch_frames=1
"""

from configs.base import base
from configs.havit_b16 import recipe
from configs.sources import cite, guess

# Read in copies of these files: of the first in xyzforever/BEVT, of the second in Young-Yoon/Video-Swin-Transformer.
CODE = "SwinTransformer/Video-Swin-Transformer"


def get_config():
    config = recipe(base("swin"))
    cite(
        config,
        f"{CODE}, configs/_base_/models/swin/swin_tiny.py: embed_dim, num_heads, depths, window_size",
        model=dict(size="Swin-T", depths=(2, 2, 6, 2), window=(8, 7, 7)),
    )
    cite(
        config,
        f"{CODE}, configs/recognition/swin/swin_tiny_patch244_window877_kinetics400_1k.py: patch_size, img_norm_cfg",
        model=dict(patch_frames=2, patch_size=4, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    )
    guess(
        config,
        "HaViT gives no number of frames for Table 7",
        "16, the longer clips of its Table 2",
        data=dict(frames=16),
    )
    return config
