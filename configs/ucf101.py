r"""UCF101 in the layout of its authors, with the config of a model after the colon.

Paper: Soomro et al., "UCF101", 2012. 13,320 clips of 101 classes in three splits. Results are the mean over the splits.
Folder: data.root holds classInd.txt, trainlist0k.txt and testlist0k.txt (or the folder ucfTrainTestlist with them), and
the videos in class folders (or in UCF-101/).
As in the model's paper: python main.py --config=configs/ucf101.py:mevit_b16 --config.data.root=DIR \
    --config.data.split=1 --config.init.weights=ViT-B_16.npz --config.init.allow="('layers', 'pre_logits')"
From scratch: python main.py --config=configs/ucf101.py:mevit_b16 --config.data.root=DIR --config.data.split=1
"""

from configs.datasets import with_data


def get_config(name: str = "mevit_b16"):
    return with_data(name, source="ucf101", root="data/ucf101", num_classes=101)
