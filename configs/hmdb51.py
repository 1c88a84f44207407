r"""HMDB51 in the layout of its authors, with the config of a model after the colon.

Paper: Kuehne et al., "HMDB: A Large Video Database for Human Motion Recognition", 2011. 51 classes, 70 training and 30
test clips each in each of three splits. Results are the mean over the three splits.
Folder: data.root holds the class folders and the files CLASS_test_splitK.txt, in a folder or not.
As in the model's paper: python main.py --config=configs/hmdb51.py:mevit_b16 --config.data.root=DIR \
    --config.data.split=1 --config.init.weights=ViT-B_16.npz --config.init.allow="('layers', 'pre_logits')"
From scratch: python main.py --config=configs/hmdb51.py:mevit_b16 --config.data.root=DIR --config.data.split=1
"""

from configs.datasets import with_data


def get_config(name: str = "mevit_b16"):
    return with_data(name, source="hmdb51", root="data/hmdb51", num_classes=51)
