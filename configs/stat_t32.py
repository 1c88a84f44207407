r"""STAT x 32 frames.

Paper: STAT, Table 6: top-1 80.4 %, top-5 94.6 % on Kinetics-400 from random weights, five clips x one crop.
Cost: 119.6 G multiply-adds per view.
As in the paper, from scratch: python main.py --config=configs/stat_t32.py --config.data.root=DIR \
    --config.data.num_classes=N
Everything else is as in configs/stat_t16.py.
"""

from configs import stat_t16


def get_config(variant: str = "deit"):
    return stat_t16.recipe(frames=32, window=5, variant=variant)
