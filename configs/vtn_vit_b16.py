"""VTN with a ViT-B/16 for each frame and three Longformer layers over the frames.

Paper: Neimark et al., "Video Transformer Network", 2021. The model behaves as its authors' code. From ImageNet weights.
Cost: 113,502,352 parameters.
Command: python main.py --config=configs/vtn_vit_b16.py --config.data.root=DIR --config.data.num_classes=N

Evaluation uses one view with 250 frames of the whole video. The backbone processes 16 of these frames at once.
The paper's ablations: python -m benchmarks.tables vtn/depth --config.data.root=DIR (docs/papers/vtn.md)
"""

from configs.base import base


def get_config(backbone: str = "vit"):
    config = base("vtn")
    config.model.backbone = backbone
    config.model.frames_at_once = 16
    config.model.mean, config.model.std = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)
    config.data.update(frames=16, sampling="dense", stride=8, fps=25.0)
    config.train.update(total_epochs=25.0, eval_every_epochs=1.0, batch_size=16)
    config.optim.update(name="sgd", lr=1e-3, momentum=0.9, nesterov=True, weight_decay=1e-4, decay="all_but_batch_norm")
    config.optim.update(schedule="step", drop_epochs=(13.0, 24.0))
    config.eval.update(clips=1, crops=1, frames=250)
    return config
