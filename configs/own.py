"""Your own videos: the size of the model and the length of the training follow from the data and this machine.

data.root holds a folder for each class, or train/ and val/ with a folder for each class, or train.csv and val.csv. The
model, pixels, frames, batch, learning rate and number of steps are derived once, so that the run ends within
own.minutes. A field that is given is kept, and the others are derived around it (docs/own-videos.md#what-is-chosen).
From scratch: python main.py --config=configs/own.py --config.data.root=DIR
Expected: top-1 of at least 40 % in ten minutes on 2 cores, on 60 clips in five classes that differ in motion alone
(python -m tests.own_videos DIR). On 2026-11-29, on 2 cores of an AMD EPYC beside test suites, all 10 validation clips
were right with each of the seeds 0, 1 and 2, with 1.2 GB at most.
"""

from configs.base import base


def get_config(model: str = "mevit"):
    config = base(model)
    config.own.minutes = 10.0
    # Crops of any size and place, and colours of any kind: a few clips are soon known by their appearance otherwise.
    config.data.update(source="auto", crop="resized", area=(0.2, 1.0), colour_jitter=0.8, grey=0.2)
    config.train.update(label_smoothing=0.1)
    config.optim.update(weight_decay=0.05, clip_norm=1.0)
    config.eval.update(clips=1, crops=1)
    return config
