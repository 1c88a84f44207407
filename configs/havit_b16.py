r"""HaViT-B/16 x 8 frames: divided attention with a dictionary of external tokens, then class attention.

Paper: HaViT, Tables 1-4. Table 2: top-1 80.6 %, top-5 94.3 % on Kinetics-400, four clips x three crops, from ImageNet
weights; with 16 frames, top-1 81.7 %, top-5 95.2 %. The paper does not give the size of its dictionary; see
`vidformers/models/havit.py`.
As in the paper: python main.py --config=configs/havit_b16.py --config.data.root=DIR --config.data.num_classes=N \
    --config.init.weights=ViT-B_16.npz --config.init.allow="('pre_logits',)"
From scratch: python main.py --config=configs/havit_b16.py --config.data.root=DIR --config.data.num_classes=N
guess: the paper says ImageNet and does not name weights. Here: ViT-B_16.npz, Google's ViT of ImageNet-21k.
Rows of the paper's tables: python -m benchmarks.tables havit/2 --config.data.root=DIR (docs/papers/havit.md)
"""

from configs.base import base
from configs.mevit_b16 import guess_rest
from configs.sources import cite, guess


def get_config():
    return vit_recipe("B")


def vit_recipe(size: str):
    """Returns the config of a HaViT of a size of `SIZES`."""
    config = base("havit")
    cite(config, "HaViT, section 4.1", model=dict(size=size, patch_size=16))
    cite(config, "HaViT, section 4.2", data=dict(frames=8))
    cite(config, "HaViT, Table 6: the best attention", model=dict(attention="divided"))
    guess(
        config,
        "the paper gives no number of class-attention layers",
        "with 112 entries, 2 agree with the parameters of HaViT's Table 6 and the cost of its Table 2",
        model=dict(class_blocks=2),
    )
    return recipe(config)


def recipe(config):
    """Sets the fields of the recipe of HaViT, Table 1 and section 4.1, and of the dictionary."""
    cite(
        config,
        "HaViT, section 4.1",
        data=dict(sampling="uniform", size=224, short_side=(256, 320), crop="jitter"),
    )
    cite(
        config,
        "HaViT, Table 1",
        model=dict(dropout=0.1),
        train=dict(batch_size=64, total_epochs=30.0),
        optim=dict(name="adamw", b1=0.9, b2=0.999, lr=2.5e-4, weight_decay=0.05, schedule="cosine", warmup_epochs=3.0),
    )
    cite(config, "HaViT, section 4.2: on all data sets", eval=dict(clips=4, crops=3))
    cite(config, "HaViT, Table 5: the best scheme", model=dict(hybrid="combined"))
    guess(
        config,
        "the paper gives no size of the dictionary",
        "112 agrees with the parameters of HaViT's Table 6",
        model=dict(dictionary=112),
    )
    guess_rest(config)
    config.train.eval_every_epochs = 1.0
    return config
