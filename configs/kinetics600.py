r"""Kinetics-600 in the layout of its authors, with the config of a model after the colon.

Paper: Carreira et al., "A Short Note about Kinetics-600", 2018. Folder and classes are as in configs/kinetics400.py.
As in the model's paper: python main.py --config=configs/kinetics600.py:mevit_b16 --config.data.root=DIR \
    --config.init.weights=ViT-B_16.npz --config.init.allow="('layers', 'pre_logits')"
From scratch: python main.py --config=configs/kinetics600.py:mevit_b16 --config.data.root=DIR
"""

from configs import kinetics400


def get_config(name: str = "mevit_b16"):
    return kinetics400.get_config(name, 600)
