"""TokenShift-B/16 x 8 frames: a frame-wise ViT whose class tokens exchange channels with neighbouring frames.

Paper: Zhang et al., "Token Shift Transformer for Video Classification", 2021. The model behaves as its authors' code.
They report top-1 77.28 % on Kinetics-400; MSCA's Table 2 reports top-1 76.37 %, top-5 92.82 % for TokenShift. Both with
ten clips x three crops.
Cost: 86,106,256 parameters, 140.5 G multiply-adds per view (134.8 G in products with weights).
Command: python main.py --config=configs/tokenshift_b16.py --config.data.root=DIR --config.data.num_classes=N
"""

from configs import msca_b16


def get_config():
    config = msca_b16.get_config("tokenshift")
    config.data.short_side = (224, 330)
    config.data.brightness = config.data.saturation = config.data.gamma = config.data.hue = 0.0
    config.train.total_epochs = 18.0
    config.train.label_smoothing = 0.01
    config.optim.drop_epochs = (10.0, 15.0)
    config.optim.clip_norm = 1.0
    return config
