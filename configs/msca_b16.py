"""MSCA-B/16 x 8 frames: a frame-wise ViT. Two of twelve heads attend to keys and values of the neighbouring frames.

Paper: MSCA, Tables 1-5. Table 1: top-1 76.47 %, top-5 92.88 % on Kinetics-400, ten clips x three crops, from
ImageNet-21k weights.
Cost: 86,106,256 parameters, 140.5 G multiply-adds per view (134.8 G in products with weights), as `vit_b16`, for every
variant.
Command: python main.py --config=configs/msca_b16.py --config.data.root=DIR --config.data.num_classes=N
Rows of the paper's tables: python -m benchmarks.tables msca/1 --config.data.root=DIR (docs/papers/msca.md)

Other readings, as overrides:
  the heads of the authors' code, zeros beyond the clip, the first head from the frame after, the last from before:
                       --config.model.boundary=zero --config.model.placement=ends
Config of the authors' code (18 epochs, a shorter side from 224 pixels): --config=configs/msca_b16.py:released
"""

from configs.base import base
from configs.loading import require


def get_config(variant: str = "paper"):
    require(variant in ("paper", "released"), f"the variant after the colon must be paper or released, not {variant!r}")
    return recipe(base("msca"), variant)


def recipe(config, variant: str):
    """Sets the fields of the recipe that MSCA's paper gives, or those of the config files of TokenShift and MSCA."""
    config.data.update(sampling="dense", stride=32)
    config.data.update(brightness=0.1, saturation=0.1, gamma=0.1, hue=0.1, colour_ranges="tokenshift")
    config.train.update(batch_size=420, accumulate=10, label_smoothing=0.1, eval_every_epochs=1.0)
    config.optim.update(name="sgd", lr=0.1, momentum=0.9, weight_decay=0.0, schedule="step", clip_norm=1.0)
    if variant == "paper":
        config.data.short_side = (244, 330)
        config.train.total_epochs = 12.0
        config.optim.drop_epochs = (10.0,)
    else:
        config.data.short_side = (224, 329)
        config.train.total_epochs = 18.0
        config.optim.drop_epochs = (10.0, 15.0)
    config.eval.clips, config.eval.crops = 10, 3
    return config
