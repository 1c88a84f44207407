"""ViT-B/16 on each of 8 frames, with averaged features: a baseline that is blind to the order of frames.

Paper: MSCA, Table 2: top-1 75.65 %, top-5 92.19 % on Kinetics-400, ten clips x three crops, from ImageNet-21k weights.
Cost: 86,106,256 parameters, 140.5 G multiply-adds per view (134.8 G in products with weights).
Command: python main.py --config=configs/vit_b16.py --config.data.root=DIR --config.data.num_classes=N
"""

from configs.base import base


def get_config():
    config = base("vit")
    config.data.update(
        sampling="dense", stride=32, short_side=(244, 330), brightness=0.1, saturation=0.1, gamma=0.1, hue=0.1
    )
    config.train.update(batch_size=420, accumulate=10, total_epochs=12.0, eval_every_epochs=1.0)
    config.optim.update(name="sgd", lr=0.1, momentum=0.9, weight_decay=0.0, schedule="step", drop_epochs=(10.0,))
    config.eval.clips, config.eval.crops = 10, 3
    return config
