"""MEViT-B/16 x 8 frames: motion attention in blocks of 2 x 2 patches, then class attention.

Paper: MEViT, Tables 1-6. Table 4: top-1 80.6 %, top-5 94.7 % on Kinetics-400, one clip x three crops, from ImageNet
weights.
Cost: 102,659,728 parameters, 156.5 G multiply-adds per view. 150.8 G of these are in products with weights, the rest in
the products of queries with keys and of attention weights with values.
Command: python main.py --config=configs/mevit_b16.py --config.data.root=DIR --config.data.num_classes=N

Rows of the paper's ablations, as overrides, with the paper's top-1:
  baseline of Tables 1 and 3: --config.model.depth=12 --config.model.motion_blocks=12 --config.model.class_blocks=0
  Table 1 (block size M): the baseline and --config.model.block_size=1|2|3|7|14      78.6 80.2 80.0 77.6 77.9
  Table 2 (self-attention blocks + class-attention blocks; the paper gives no number of motion blocks, here it is all):
    9+3   --config.model.depth=9  --config.model.motion_blocks=9  --config.model.class_blocks=3     79.4
    10+2  --config.model.depth=10 --config.model.motion_blocks=10 --config.model.class_blocks=2     80.3
    11+1  --config.model.depth=11 --config.model.motion_blocks=11 --config.model.class_blocks=1     80.5
    12+1  --config.model.depth=12 --config.model.motion_blocks=12 --config.model.class_blocks=1     80.6
  Table 3 (motion blocks L_t): the baseline and --config.model.motion_blocks=0|2|4|8|12    75.6 77.5 77.9 80.3 80.2
  Table 4 (16 frames): --config.data.frames=16                                      81.1
"""

from configs.base import base


def get_config():
    config = base("mevit")
    # The model of Tables 4-6: 4 space blocks, 7 motion blocks and 1 class-attention block.
    config.model.update(depth=11, motion_blocks=7, class_blocks=1)  # depth: space and motion blocks
    config.train.total_epochs = 30.0
    config.train.eval_every_epochs = 1.0
    config.optim.warmup_epochs = 3.0
    config.eval.clips, config.eval.crops = 1, 3
    return config
