"""Kinetics-400 as its authors distribute it, for any model: --config=configs/kinetics400.py:mevit_b16.

Paper: Kay et al., "The Kinetics Human Action Video Dataset", 2017. About 240,000 training and 20,000 validation clips
of 10 seconds, fewer in every copy: videos vanish, and what is not there is counted and named.
Folder: data.root holds train.csv, and val.csv or validate.csv, with the header label,youtube_id,time_start,...; videos
lie anywhere below. Classes are numbered alphabetically unless data.classes=FILE.
Command: python main.py --config=configs/kinetics400.py:mevit_b16 --config.data.root=DIR
"""

from configs.datasets import with_data


def get_config(sheet: str = "mevit_b16", num_classes: int = 400):
    return with_data(
        sheet, source="kinetics", root=f"data/kinetics{num_classes}", num_classes=num_classes, missing="leave_out"
    )
