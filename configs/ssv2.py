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
from configs.sources import cite, guess

TIMESFORMER = "facebookresearch/TimeSformer, configs/SSv2/TimeSformer_divST_8_224.yaml"
VIVIT = "google-research/scenic, scenic/projects/vivit/configs/something_something_v2/vivit_large_factorised_encoder.py"


def get_config(name: str = "mevit_b16"):
    config = with_data(name, source="something", root="data/ssv2", num_classes=174)
    model = name.partition(":")[0]
    if model in ("timesformer_b16", "joint_b16"):
        # DATA.INV_UNIFORM_SAMPLE, which draws the inverse of the shorter side uniformly, is not offered.
        cite(config, f"{TIMESFORMER}: DATA.RANDOM_FLIP", data=dict(flip=0.0))
        cite(
            config,
            "facebookresearch/TimeSformer, timesformer/datasets/ssv2.py",
            data=dict(sampling="timesformer_ssv2"),
        )
        return config
    flips = "the paper does not mention flips on this data set"
    if model == "vivit_b16":
        flips = "the authors' file for this data set is that of another model, whose code flips and swaps no labels"
    guess(config, flips, "none, because many classes have a direction", data=dict(flip=0.0))
    if model == "vivit_b16":
        cite(config, f"{VIVIT}: stride", data=dict(sampling="dmvr", stride=1))
    elif model.startswith("stat_"):
        cite(config, "STAT, Implementation Details: 1 x 3 views on SSv2", eval=dict(clips=1, crops=3))
    elif config.model.name != "havit":  # HaViT and STAT sample all data sets alike
        guess(
            config,
            "the paper does not describe sampling on this data set, whose videos are short",
            "segments of the whole video",
            data=dict(sampling="uniform"),
        )
    return config
