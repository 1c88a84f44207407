r"""Something-Something v2 in the layout of its authors, with the config of a model after the colon.

Paper: Goyal et al., "The 'Something Something' Video Database", 2017. 168,913 training and 24,777 validation clips of 2
to 6 seconds in 174 classes.
Folder: data.root holds something-something-v2-{labels,train,validation}.json, or the later short names. The videos,
ID.webm, or folders of their frames, are in any folder below.
As in the model's paper: python main.py --config=configs/ssv2.py:mevit_b16 --config.data.root=DIR \
    --config.init.weights=ViT-B_16.npz --config.init.allow="('layers', 'pre_logits')"
From scratch: python main.py --config=configs/ssv2.py:mevit_b16 --config.data.root=DIR

The views are those of the config of the model, except for STAT, whose paper has other views for this data set. Frames
are sampled as the paper or the code of the model does for this data set. Models whose papers do not have this data set
take segments of the whole video, which is a guess: their clips are longer than these videos. Nothing is flipped,
because many classes have a direction. --config.data.flip=0.5 --config.data.flip_sides=True flips videos and swaps left
and right in their labels.
"""

from configs.datasets import with_data

# What papers and their code say for this data set.
TIMESFORMER = dict(sampling="timesformer_ssv2")  # facebookresearch/TimeSformer, timesformer/datasets/ssv2.py
DATA = {
    "timesformer_b16": TIMESFORMER,
    "joint_b16": TIMESFORMER,
    # google-research/scenic, scenic/projects/vivit/configs/something_something_v2/vivit_large_factorised_encoder.py
    "vivit_b16": dict(sampling="dmvr", stride=1),
}
VIEWS = {"stat": dict(clips=1, crops=3)}  # STAT, "Implementation Details"


def get_config(name: str = "mevit_b16"):
    data = DATA.get(name.partition(":")[0], dict(sampling="uniform"))
    config = with_data(name, source="something", root="data/ssv2", num_classes=174, flip=0.0, **data)
    config.eval.update(VIEWS.get(config.model.name, {}))
    return config
