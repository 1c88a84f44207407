r"""VTN with a ResNet-50 for each frame and three Longformer layers over the frames.

Paper: Neimark et al., "Video Transformer Network", 2021. From ImageNet weights, with folded batch normalisation.
As in the paper: python main.py --config=configs/vtn_resnet50.py --config.data.root=DIR --config.data.num_classes=N \
    --config.init.weights=timm/resnet50.tv_in1k --config.init.allow="('normalisation',)"
From scratch: python main.py --config=configs/vtn_resnet50.py --config.data.root=DIR --config.data.num_classes=N
guess: the paper says ImageNet and does not name weights. Here: those of torchvision.
guess: the paper does not say how 2,048 features become those of the layers over frames. Here: a linear map to 768.
Layers over frames of width 2,048:
    --config.model.projection=none --config.model.width=2048 --config.model.heads=16
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
