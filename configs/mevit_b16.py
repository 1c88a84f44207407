r"""MEViT-B/16 x 8 frames: motion attention in blocks of 2 x 2 patches, then class attention.

Paper: MEViT, Tables 1-6. Table 4: top-1 80.6 %, top-5 94.7 % on Kinetics-400, one clip x three crops, from ImageNet
weights.
Cost: 102,659,728 parameters, 156.5 G multiply-adds per view. 150.8 G of these are in products with weights, the rest in
the products of queries with keys and of attention weights with values.
As in the paper: python main.py --config=configs/mevit_b16.py --config.data.root=DIR --config.data.num_classes=N \
    --config.init.weights=ViT-B_16.npz --config.init.allow="('layers', 'pre_logits')"
From scratch: python main.py --config=configs/mevit_b16.py --config.data.root=DIR --config.data.num_classes=N
guess: the paper says ImageNet and does not name weights. Here: ViT-B_16.npz, Google's ViT of ImageNet-21k.
Rows of the paper's tables: python -m benchmarks.tables mevit/1 --config.data.root=DIR (docs/papers/mevit.md)
"""

from configs.base import base
from configs.sources import cite, guess


def get_config():
    config = base("mevit")
    cite(
        config,
        "MEViT, section 4.1",
        model=dict(size="B", patch_size=16),
        data=dict(size=224, short_side=(256, 320), crop="jitter"),
        eval=dict(clips=1, crops=3),
    )
    # The model of Tables 4 to 6: 4 space blocks, 7 motion blocks and 1 class-attention block.
    cite(
        config,
        "MEViT, section 4.3: eleven SA layers, four of them space-attention layers, and one CA layer",
        model=dict(depth=11, motion_blocks=7, class_blocks=1),  # depth: space and motion blocks
    )
    cite(config, "MEViT, Table 1: the best block size", model=dict(block_size=2))
    guess(
        config,
        "the paper gives the number of frames for 16 frames alone",
        "HaViT, section 4.2, of the same authors",
        data=dict(frames=8),
    )
    guess(
        config,
        "the paper does not describe the sampling of frames",
        "HaViT, section 4.1, of the same authors",
        data=dict(sampling="uniform"),
    )
    guess(
        config,
        "the paper does not name an optimizer",
        "HaViT, Table 1, of the same authors",
        train=dict(batch_size=64, total_epochs=30.0),
        optim=dict(name="adamw", b1=0.9, b2=0.999, lr=2.5e-4, weight_decay=0.05, schedule="cosine", warmup_epochs=3.0),
    )
    guess_rest(config)
    config.train.eval_every_epochs = 1.0
    return config


def guess_rest(config):
    """Sets what neither MEViT nor HaViT names."""
    guess(
        config,
        "the paper does not name the normalisation of pixels, nor the ImageNet weights",
        "google-research/vision_transformer, the first ViT weights",
        model=dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    )
    guess(
        config,
        "the paper does not say what does not decay",
        "AdamW as DeiT uses it: biases, norms, tokens and positions",
        optim=dict(decay="kernels"),
    )
    guess(
        config,
        "the paper does not mention flips, nor how frames are resized",
        "TimeSformer's code",
        data=dict(flip=0.5, resize="bilinear"),
    )
    guess(
        config,
        "the paper does not say whether scores are logits or probabilities",
        "PySlowFast's head",
        eval=dict(average="probabilities"),
    )
    guess(
        config,
        "the paper names none",
        "off",
        model=dict(drop_path=0.0),
        train=dict(label_smoothing=0.0),
        optim=dict(clip_norm=None),
    )
    if config.model.name == "mevit":
        guess(config, "the paper names none", "off", model=dict(dropout=0.0))
