"""CvT-13 x 8 frames with a dictionary of external tokens: a host of HaViT's Table 7.

Paper: HaViT, Table 7. Kinetics-400 76.6 without and 77.4 with the dictionary, from ImageNet weights. How the paper
extends CvT to video it does not say; here its last stage attends over all frames.
Command: python main.py --config=configs/cvt_13.py --config.data.root=DIR --config.data.num_classes=N

Without the dictionary:      --config.model.dictionary=0                      76.6
Joint attention elsewhere:   --config.model.joint=none|all
"""

from configs import swin_t


def get_config():
    config = swin_t.get_config("cvt")
    config.data.frames = 8
    return config
