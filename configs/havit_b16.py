"""HaViT-B/16 x 8 frames: divided attention with a dictionary of external tokens, then class attention.

Paper: HaViT, Tables 1-4. Table 2: top-1 80.6 %, top-5 94.3 % on Kinetics-400, four clips x three crops, from ImageNet
weights; with 16 frames, top-1 81.7 %, top-5 95.2 %. The paper does not give the size of its dictionary; see
`vidformers/models/havit.py`.
Command: python main.py --config=configs/havit_b16.py --config.data.root=DIR --config.data.num_classes=N
Rows of the paper's tables: python -m benchmarks.tables havit/2 --config.data.root=DIR (docs/papers/havit.md)
"""

from configs.base import base


def get_config(size: str = "B"):
    config = base("havit")
    config.model.size = size
    return recipe(config)


def recipe(config):
    """Sets the fields of the paper's Table 1, and the size of the dictionary that agrees with its parameter counts."""
    config.model.dictionary = 112
    config.model.dropout = 0.1
    config.train.total_epochs = 30.0
    config.train.eval_every_epochs = 1.0
    config.optim.warmup_epochs = 3.0
    config.eval.clips, config.eval.crops = 4, 3
    return config
