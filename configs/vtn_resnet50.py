"""VTN with a ResNet-50 for each frame and three Longformer layers over the frames.

Paper: Neimark et al., "Video Transformer Network", 2021. From ImageNet weights, with folded batch normalisation.
Command: python main.py --config=configs/vtn_resnet50.py --config.data.root=DIR --config.data.num_classes=N
Everything else is as in configs/vtn_vit_b16.py.
"""

from configs.sources import guess
from configs.vtn_vit_b16 import recipe


def get_config():
    config = recipe("resnet")
    guess(
        config,
        "the authors' code has no config with a ResNet",
        "ResNet-50 before its head, a linear map to the width, and the recipe with the ViT",
        model=dict(backbone="resnet", depths=(3, 4, 6, 3), stem=64, projection="linear"),
    )
    return config
