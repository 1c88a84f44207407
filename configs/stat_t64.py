r"""STAT x 64 frames.

Paper: STAT, Table 6: top-1 81.3 %, top-5 95.1 % on Kinetics-400 from random weights, three clips x three crops. The
paper states a window of 7 frames, but the cost that it prints, 2172 G for nine views, is that of a window of 5.
As in the paper, from scratch: python main.py --config=configs/stat_t64.py --config.data.root=DIR \
    --config.data.num_classes=N
Everything else is as in configs/stat_t16.py.
"""

from configs import stat_t16
from configs.sources import cite


def get_config(variant: str = "deit"):
    config = stat_t16.recipe(frames=64, window=7, variant=variant)
    cite(config, "STAT, Implementation Details: 3 x 3 views with 64 frames", eval=dict(clips=3, crops=3))
    return config
