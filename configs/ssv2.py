r"""Something-Something v2 in the layout of its authors, with the config of a model after the colon.

Paper: Goyal et al., "The 'Something Something' Video Database", 2017. 168,913 training and 24,777 validation clips of 2
to 6 seconds in 174 classes.
Folder: data.root holds something-something-v2-{labels,train,validation}.json, or the later short names. The videos,
ID.webm, or folders of their frames, are in any folder below.
As in the model's paper: python main.py --config=configs/ssv2.py:mevit_b16 --config.data.root=DIR \
    --config.init.weights=ViT-B_16.npz --config.init.allow="('layers', 'pre_logits')"
From scratch: python main.py --config=configs/ssv2.py:mevit_b16 --config.data.root=DIR

Frames are sampled from segments of the whole video, and one clip x three crops is evaluated, as in papers. Nothing is
flipped, because many classes have a direction. --config.data.flip=0.5 --config.data.flip_sides=True flips videos and
swaps left and right in their labels.
"""

from configs.datasets import with_data


def get_config(name: str = "mevit_b16"):
    config = with_data(name, source="something", root="data/ssv2", num_classes=174, sampling="uniform", flip=0.0)
    config.eval.update(clips=1, crops=3)
    return config
