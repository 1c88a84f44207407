r"""Kinetics-400 in the layout of its authors, with the config of a model after the colon.

Paper: Kay et al., "The Kinetics Human Action Video Dataset", 2017. About 240,000 training and 20,000 validation clips
of 10 seconds. Every copy lacks some, because videos disappear from the web. Missing videos are counted and listed.
Folder: data.root holds train.csv, and val.csv or validate.csv, with the header label,youtube_id,time_start,.... The
videos are in any folder below. Classes are numbered alphabetically unless data.classes=FILE is given.
As in the model's paper: python main.py --config=configs/kinetics400.py:mevit_b16 --config.data.root=DIR \
    --config.init.weights=ViT-B_16.npz --config.init.allow="('layers', 'pre_logits')"
From scratch: python main.py --config=configs/kinetics400.py:mevit_b16 --config.data.root=DIR
"""

from configs.datasets import with_data


def get_config(name: str = "mevit_b16", num_classes: int = 400):
    return with_data(
        name, source="kinetics", root=f"data/kinetics{num_classes}", num_classes=num_classes, missing="leave_out"
    )
