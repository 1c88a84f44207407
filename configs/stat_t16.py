"""STAT x 16 frames: attention that shrinks with temporal distance, after a convolutional stem.

Paper: STAT, Tables 1-7. Table 6: top-1 78.6 %, top-5 93.8 % on Kinetics-400 from random weights, five clips x one crop.
Cost: 44,058,928 parameters, 58.9 G multiply-adds per view. The paper's 59.1 G include the norms.
Command: python main.py --config=configs/stat_t16.py --config.data.root=DIR --config.data.num_classes=N
The paper leaves its recipe to an appendix that was not published. This is the recipe of MViT, on which STAT builds,
with two clips of each video in a batch.

Rows of the paper's ablations, as overrides, with the paper's top-1 (CA: current, SA: short-term, LA: long-term):
  Table 1 (modules):  CA        --config.model.window=1 --config.model.long_key=none    77.3
                      CA+SA     --config.model.long_key=none                            77.8
                      CA+LA     --config.model.window=1                                 78.3
                      CA+SA+LA                                                          78.6
  Table 2 (32 frames, configs/stat_t32.py): --config.model.window=3|5|7|9               79.9 80.4 80.4 80.2
  Table 3 (long key): --config.model.long_key=mean|class                                77.4 78.6
  Table 4 (l_ta):     --config.model.aggregation_layers=0|1|2|4                         75.7 78.6 78.6 78.5
  Table 5 (stem):     1 --config.model.stem_convs=1 --config.model.patch_size=4         78.2
                      5 --config.model.stem_convs=5 --config.model.depths="(2,7,2)" --config.model.depth=11 78.3
Something-Something v2, from Kinetics weights: --config.eval.clips=1 --config.eval.crops=3
"""

from configs.base import base


def get_config(frames: int = 16, window: int = 3):
    config = base("stat")
    config.data.frames = frames
    config.data.update(
        test_short_side=256, repeats=2, crop="resized", randaugment=4, magnitude=7.0, magnitude_std=0.5, erasing=0.25
    )
    config.model.window = window
    config.model.drop_path = 0.2
    config.train.update(
        total_epochs=200.0, eval_every_epochs=5.0, batch_size=512, label_smoothing=0.1, mixup=0.8, cutmix=1.0
    )
    config.optim.update(lr=1.6e-3, warmup_epochs=30.0, weight_decay=0.05, clip_norm=1.0)
    config.eval.clips, config.eval.crops = 5, 1
    return config
