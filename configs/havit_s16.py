"""HaViT-S/16 x 8 frames, the size of the paper's ablations.

Paper: HaViT, Tables 5-7. Kinetics-400, from ImageNet weights.
Cost: 34,541,584 parameters.
Command: python main.py --config=configs/havit_s16.py --config.data.root=DIR --config.data.num_classes=N

Rows of the paper's ablations, as overrides, with the paper's top-1:
  Table 5 (hybrid):     --config.model.hybrid=simplified|multi_view|combined        77.1 77.5 78.2
  Table 6 (attention):
    joint               --config.model.attention=joint                              77.3
    linear activation   --config.model.attention=joint --config.model.kernel=relu   74.6
    cosine re-weighting --config.model.attention=joint --config.model.kernel=cosine 76.8
    divided                                                                         78.1
  Table 7 (dictionary): --config.model.dictionary=0|112                             77.6 78.2
Other interpretations of the paper, as overrides:
  time and space attention share one dictionary:    --config.model.share_dictionary=true
  the class token is a key from the first block on: --config.model.class_token=input
  the cosine kernel measures distance in frames:    --config.model.cosine_index=t
"""

from configs import havit_b16


def get_config():
    return havit_b16.get_config("S")
