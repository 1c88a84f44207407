"""Writes pretrained.json: what the models of timm and transformers answer with drawn weights, and how these are named.

Run where torch, timm and transformers are installed: PYTHONPATH=tests python tests/goldens/make_pretrained.py
"""

import json
import tempfile
from pathlib import Path

import timm
import torch
import transformers
from drawn import clip, draw
from safetensors.numpy import load_file, save_file

SIDE, CLASSES = 64, 7
TINY = dict(hidden_size=192, num_attention_heads=3, num_hidden_layers=3, intermediate_size=768, image_size=SIDE,
            patch_size=16)


def fill(model):
    state = {name: torch.from_numpy(draw(name, tuple(tensor.shape))) for name, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    return model.eval()


def of_timm(name, **options):
    model = fill(timm.create_model(name, img_size=SIDE, num_classes=CLASSES, depth=3, **options))
    images = torch.from_numpy(clip((2, SIDE, SIDE, 3))).permute(0, 3, 1, 2)
    names = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    return {"arrays": names, "logits": model(images).tolist(), "patch": model.patch_embed.patch_size[0],
            "version": f"timm {timm.__version__}"}


def of_hugging_face(kind, config, pixels, output="logits"):
    """The names are those in the file that it saves, which the library may translate; so are the arrays drawn."""
    model = kind(config)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        names = {name: list(array.shape) for name, array in load_file(f"{folder}/model.safetensors").items()}
        save_file({name: draw(name, tuple(shape)) for name, shape in names.items()}, f"{folder}/model.safetensors",
                  metadata={"format": "pt"})
        model = kind.from_pretrained(folder).eval()
        about = json.loads(Path(folder, "config.json").read_text())
    return {"arrays": names, output: model(torch.from_numpy(pixels))[output].tolist(), "patch": config.patch_size,
            "about": {key: about[key] for key in ("num_attention_heads", "hidden_act") if key in about},
            "version": f"transformers {transformers.__version__}"}


def main():
    torch.set_grad_enabled(False)
    images = clip((2, SIDE, SIDE, 3)).transpose(0, 3, 1, 2)
    video = clip((2, 4, SIDE, SIDE, 3)).transpose(0, 1, 4, 2, 3)
    labels = dict(num_labels=CLASSES)
    goldens = {
        "timm_vit": of_timm("vit_tiny_patch16_224"),
        "timm_deit": of_timm("deit_tiny_patch16_224"),
        "timm_dinov2": of_timm("vit_small_patch14_dinov2", embed_dim=192, num_heads=3, patch_size=16),
        "hf_vit": of_hugging_face(transformers.ViTForImageClassification,
                                  transformers.ViTConfig(**TINY, **labels), images),
        "hf_dinov2": of_hugging_face(transformers.Dinov2Model, transformers.Dinov2Config(
            **{key: value for key, value in TINY.items() if key != "intermediate_size"}), images, "pooler_output"),
        **{name: of_hugging_face(transformers.TimesformerForVideoClassification, transformers.TimesformerConfig(
            **TINY, num_frames=4, attention_type=kind, **labels), video)
           for name, kind in (("hf_timesformer", "divided_space_time"), ("hf_timesformer_joint", "joint_space_time"))},
    }
    path = Path(__file__).with_name("pretrained.json")
    path.write_text(json.dumps(goldens) + "\n")
    for name, golden in goldens.items():
        logits = torch.tensor(golden.get("logits", golden.get("pooler_output")))
        print(name, golden["version"], f"spread {float(logits.std()):.2f}", len(golden["arrays"]))


if __name__ == "__main__":
    main()
