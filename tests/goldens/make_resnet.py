"""Writes resnet.npz: the weights of a small Hugging Face ResNet, two images and their pooled features.

To write the file again, where torch and transformers are installed: python tests/goldens/make_resnet.py
"""

from pathlib import Path

import numpy as np
import torch
import transformers


def main():
    torch.manual_seed(0)
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[32, 64, 128], depths=[1, 2, 1])
    model = transformers.ResNetModel(config).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var") or name.endswith("normalization.weight"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim == 1:
                tensor.normal_(0, 0.3)
    images = torch.randn(2, 3, 40, 40)
    with torch.inference_mode():
        pooled = model(images).pooler_output[..., 0, 0]
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items() if tensor.ndim}
    np.savez_compressed(
        Path(__file__).with_name("resnet.npz"),
        input=images.permute(0, 2, 3, 1).numpy(),
        output=pooled.numpy(),
        versions=[f"torch {torch.__version__}", f"transformers {transformers.__version__}"],
        **arrays,
    )
    print(*arrays, sep="\n")


if __name__ == "__main__":
    main()
