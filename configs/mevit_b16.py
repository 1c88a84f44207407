"""MEViT-B/16 x 8 frames: motion attention in blocks of 2 x 2 patches, then class attention.

Paper: MEViT, Tables 1-6. Kinetics-400 80.6 / 94.7, one clip x three crops, from ImageNet weights.
Cost: 102,659,728 parameters, 156.5 G multiply-adds a view (150.8 linear).
Command: python main.py --config=configs/mevit_b16.py --config.data.root=DIR --config.data.num_classes=N

Rows of the paper's ablations, as overrides:
  baseline of Tables 1 and 3: --config.model.depth=12 --config.model.motion_blocks=12 --config.model.class_blocks=0
  Table 1 (M):    the baseline and --config.model.block_size=1|2|3|7|14       78.6 80.2 80.0 77.6 77.9
  Table 2 (SA+CA, with --config.model.motion_blocks equal to the depth):
    9+3   --config.model.depth=9  --config.model.class_blocks=3               79.4
    10+2  --config.model.depth=10 --config.model.class_blocks=2               80.3
    11+1  --config.model.depth=11 --config.model.class_blocks=1               80.5
    12+1  --config.model.depth=12 --config.model.class_blocks=1               80.6
  Table 3 (L_t):  the baseline and --config.model.motion_blocks=0|2|4|8|12    75.6 77.5 77.9 80.3 80.2
  16 frames:      --config.data.frames=16                                     81.1
"""

from configs.base import base


def get_config():
    config = base("mevit")
    config.model.depth = 11  # the first 4 blocks attend in space only
    config.train.total_epochs = 30.0
    config.train.eval_every_epochs = 1.0
    config.optim.warmup_epochs = 3.0
    config.eval.clips, config.eval.crops = 1, 3
    return config
