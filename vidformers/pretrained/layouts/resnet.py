"""ResNet-50 of torchvision and timm, which have the same names.

Names: `torchvision/models/resnet.py` and `timm/models/resnet.py`.
"""

from vidformers.pretrained.layouts.registry import register
from vidformers.pretrained.layouts.structure import IMAGENET, ResNetWeights

_PARTS = {"reduce": ("conv1", "bn1"), "spatial": ("conv2", "bn2"), "expand": ("conv3", "bn3")}


def read(arrays) -> ResNetWeights:
    """Converts the arrays. Batch norm is folded into the scale and bias of the convolution before it."""
    stages = [
        [_block(arrays, f"layer{i + 1}.{j}") for j in range(arrays.layer_count(rf"layer{i + 1}\.(\d+)\."))]
        for i in range(4)
    ]
    return ResNetWeights(
        layout="ResNet of torchvision or timm",
        stem=arrays.normalised_convolution("conv1", "bn1"),
        stages=[stage for stage in stages if stage],
        head=arrays.head("fc"),
        normalisation=IMAGENET,
    )


def _block(arrays, block):
    parts = {
        part: arrays.normalised_convolution(f"{block}.{convolution}", f"{block}.{norm}")
        for part, (convolution, norm) in _PARTS.items()
    }
    if f"{block}.downsample.0.weight" in arrays:
        parts["skip"] = arrays.normalised_convolution(f"{block}.downsample.0", f"{block}.downsample.1")
    return parts


register("ResNet-50 of torchvision and timm", read, "layer1.0.conv3.weight", "conv1.weight", "bn1.running_mean")
