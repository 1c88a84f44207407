"""Joint space-time attention, B/16 x 8 frames: every token attends to every token of the clip.

The joint model of TimeSformer's authors. mmaction2 reports top-1 77.0 % on Kinetics-400, from a training of its own.
Cost: 86,112,400 parameters, 179.6 G multiply-adds per view.
Command: python main.py --config=configs/joint_b16.py --config.data.root=DIR --config.data.num_classes=N
"""

from configs import timesformer_b16
from configs.base import base


def get_config():
    config = base("joint")
    recipe = timesformer_b16.get_config()
    for section in ("data", "train", "optim", "eval"):
        config[section].update(recipe[section].to_dict())
    config.model.drop_path = recipe.model.drop_path
    config.model.mean, config.model.std = recipe.model.mean, recipe.model.std
    return config
