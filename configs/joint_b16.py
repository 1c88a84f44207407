r"""Joint space-time attention, B/16 x 8 frames: every token attends to every token of the clip.

The joint model of TimeSformer's authors. mmaction2 reports top-1 77.0 % on Kinetics-400, from a training of its own.
Cost: 86,112,400 parameters, 179.6 G multiply-adds per view.
As in the paper: python main.py --config=configs/joint_b16.py --config.data.root=DIR --config.data.num_classes=N \
    --config.init.weights=ViT-B_16.npz --config.init.allow="('normalisation', 'pre_logits')"
From scratch: python main.py --config=configs/joint_b16.py --config.data.root=DIR --config.data.num_classes=N
Weights and normalisation are as in configs/timesformer_b16.py.
"""

from configs.base import base
from configs.sources import cite
from configs.timesformer_b16 import CODE, recipe

FILE = f"{CODE}, configs/Kinetics/TimeSformer_jointST_8x32_224.yaml"


def get_config():
    config = base("joint")
    cite(
        config,
        f"{CODE}, timesformer/models/vit.py",
        model=dict(patch_frames=1, positions="separate", gelu="exact"),
    )
    return recipe(config, FILE)
