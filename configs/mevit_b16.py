"""MEViT-B/16 x 8 frames: motion attention in blocks of 2 x 2 patches, then class attention.

Paper: MEViT, Tables 1-6. Table 4: top-1 80.6 %, top-5 94.7 % on Kinetics-400, one clip x three crops, from ImageNet
weights.
Cost: 102,659,728 parameters, 156.5 G multiply-adds per view. 150.8 G of these are in products with weights, the rest in
the products of queries with keys and of attention weights with values.
Command: python main.py --config=configs/mevit_b16.py --config.data.root=DIR --config.data.num_classes=N
Rows of the paper's tables: python -m benchmarks.tables mevit/1 --config.data.root=DIR (docs/papers/mevit.md)
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
