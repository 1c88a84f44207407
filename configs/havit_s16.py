r"""HaViT-S/16 x 8 frames, the size of the paper's ablations.

Paper: HaViT, Tables 5-7. Kinetics-400, from ImageNet weights.
Cost: 34,541,584 parameters.
As in the paper: python main.py --config=configs/havit_s16.py --config.data.root=DIR --config.data.num_classes=N \
    --config.init.weights=timm/vit_small_patch16_224.augreg_in21k
From scratch: python main.py --config=configs/havit_s16.py --config.data.root=DIR --config.data.num_classes=N
guess: the paper says ImageNet and does not name weights. Here: timm's ViT-S/16 of ImageNet-21k.
Rows of the paper's tables: python -m benchmarks.tables havit/5 --config.data.root=DIR (docs/papers/havit.md)

Other interpretations of the paper, as overrides:
  time and space attention share one dictionary:    --config.model.share_dictionary=true
  all layers share a dictionary for time and one for space:
      --config.model.dictionary_per=model --config.model.dictionary=1300
  the feed-forward of eq. 6 acts on the external result:
      --config.model.external_mlp=true --config.model.hybrid=simplified
  the class token is a key from the first block on: --config.model.class_token=input
  the cosine kernel measures distance in frames:    --config.model.cosine_index=t
"""

from configs.havit_b16 import vit_recipe


def get_config():
    return vit_recipe("S")
