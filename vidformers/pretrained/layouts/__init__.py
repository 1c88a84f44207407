"""The layouts in which others keep their models, one file each, told apart by their names, as one structure.

Every layout gives the same thing: sublayers by what they attend to, with kernels of (in, out). Nothing is computed
that changes what the model computes.
"""

from vidformers.errors import ConfigError
from vidformers.pretrained.layouts import google, hugging_face, timm, tokenshift, torchvision, vtn
from vidformers.pretrained.layouts.structure import Names, Transformer, Windows

_LAYOUTS = (google, vtn, timm, hugging_face, tokenshift, torchvision)  # a VTN holds a ViT of timm


def read(arrays, about=None) -> tuple[Transformer | Windows, Names]:
    """The model in the arrays of a file, `about` being the configuration beside it, and which of them it is made of.

    Raises:
      ConfigError: no layout has these names, or one of its arrays is missing; the sentence goes on from the path.
    """
    for layout in _LAYOUTS:
        if (prefix := layout.recognised(arrays)) is not None:
            names = Names(arrays, prefix, about or {})
            return layout.read(names), names
    some = ", ".join(list(arrays)[:3])
    raise ConfigError(
        f"its names ({some}, ...) are those of no layout that is known: ViT of Google, timm or Hugging "
        "Face, DeiT, DINOv2, TimeSformer, ViViT, TokenShift, VTN, Video Swin of torchvision"
    )
