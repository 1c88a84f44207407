"""TimeSformer-B/16 x 8 frames, divided space-time attention.

Paper: Bertasius, Wang and Torresani, 2021. Its authors report top-1 77.9 %, top-5 93.2 % on Kinetics-400, one clip x
three crops, from ImageNet-21k weights.
Cost: 121,566,352 parameters, 195.8 G multiply-adds per view.
Command: python main.py --config=configs/timesformer_b16.py --config.data.root=DIR --config.data.num_classes=N
"""

from configs.base import base


def get_config():
    config = base("timesformer")
    config.data.sampling, config.data.stride = "dense", 32
    config.model.mean, config.model.std = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)
    config.model.drop_path = 0.1
    config.train.total_epochs = 15.0
    config.train.eval_every_epochs = 1.0
    config.optim.update(
        name="sgd",
        lr=5e-3,
        momentum=0.9,
        nesterov=True,
        weight_decay=1e-4,
        decay="all",
        schedule="step",
        drop_epochs=(11.0, 14.0),
    )
    config.eval.clips, config.eval.crops = 1, 3
    return config
