"""VTN with a ResNet-50 for each frame and three Longformer layers over the frames.

Paper: Neimark et al., "Video Transformer Network", 2021. From ImageNet weights, with folded batch normalisation.
Command: python main.py --config=configs/vtn_resnet50.py --config.data.root=DIR --config.data.num_classes=N
Everything else is as in configs/vtn_vit_b16.py.
"""

from configs import vtn_vit_b16


def get_config():
    return vtn_vit_b16.get_config("resnet")
