"""Writes pretrained.json: the logits of other libraries' models with drawn weights, and the names of their arrays.

timm, transformers and torchvision compute the logits themselves. TokenShift and VTN are built here from timm's ViT and
Hugging Face's Longformer, with the names of arrays in their authors' code, because the published files were not
available. To write the file again, where timm, torch, torchvision and transformers are installed:

    PYTHONPATH=tests python tests/goldens/make_pretrained.py
"""

import json
import tempfile
from pathlib import Path

import timm
import torch
import torchvision
import transformers
from drawn import clip, draw
from safetensors.numpy import load_file, save_file

SIDE, CLASSES = 64, 7
TINY = dict(
    hidden_size=192, num_attention_heads=3, num_hidden_layers=3, intermediate_size=768, image_size=SIDE, patch_size=16
)


def fill(model):
    state = {name: torch.from_numpy(draw(name, tuple(tensor.shape))) for name, tensor in floats(model).items()}
    model.load_state_dict(state, strict=False)
    return model.eval()


def floats(model):
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.dtype.is_floating_point}


def shapes(model):
    return {name: list(tensor.shape) for name, tensor in floats(model).items()}


def run_timm(name, **options):
    model = fill(timm.create_model(name, img_size=SIDE, num_classes=CLASSES, depth=3, **options))
    images = torch.from_numpy(clip((2, SIDE, SIDE, 3))).permute(0, 3, 1, 2)
    return {"arrays": shapes(model), "logits": model(images).tolist(), "version": f"timm {timm.__version__}"}


def run_hugging_face(kind, config, pixels, output="logits"):
    """Draws the arrays by their names in the saved file, which transformers can translate when it reads them."""
    model = kind(config)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        names = {name: list(array.shape) for name, array in load_file(f"{folder}/model.safetensors").items()}
        save_file(
            {name: draw(name, tuple(shape)) for name, shape in names.items()},
            f"{folder}/model.safetensors",
            metadata={"format": "pt"},
        )
        model = kind.from_pretrained(folder).eval()
        about = json.loads(Path(folder, "config.json").read_text())
    kept = ("num_attention_heads", "hidden_act", "num_frames")
    return {
        "arrays": names,
        output: model(torch.from_numpy(pixels))[output].tolist(),
        "about": {key: about[key] for key in kept if key in about},
        "version": f"transformers {transformers.__version__}",
    }


def run_torchvision(video):
    """Also returns the rows of the position tables, which torchvision's files hold for every block."""
    model = fill(
        torchvision.models.video.SwinTransformer3d([2, 4, 4], 64, [2, 2], [2, 4], [2, 4, 4], num_classes=CLASSES)
    )
    rows = model.features[0][0].attn.relative_position_index.tolist()
    return {
        "arrays": shapes(model),
        "rows": rows,
        "logits": model(video.permute(0, 4, 1, 2, 3)).tolist(),
        "version": f"torchvision {torchvision.__version__}",
    }


# Arrays of a block: name in timm -> names in the code of TokenShift's authors.
PARTS = {
    "norm1": ["attention_norm"],
    "attn.qkv": ["attn.query", "attn.key", "attn.value"],
    "attn.proj": ["attn.out"],
    "norm2": ["ffn_norm"],
    "mlp.fc1": ["ffn.fc1"],
    "mlp.fc2": ["ffn.fc2"],
}
OUTER = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings",
    "norm": "encoder.encoder_norm",
}


def tokenshift(video, fold=4):
    """A ViT that shifts channels of its class tokens to neighbouring frames before each sublayer of a block."""
    vit = timm.create_model("vit_tiny_patch16_224", img_size=SIDE, num_classes=CLASSES, depth=3).eval()
    arrays, state = {}, {}
    for name, tensor in vit.state_dict().items():
        if name.startswith("blocks."):
            number, part = name.split(".", 2)[1:]
            part, kind = part.rsplit(".", 1)
            their_names = [f"transformer.encoder.layer.{number}.{their_name}.{kind}" for their_name in PARTS[part]]
        elif name.startswith("head."):
            their_names = [name]
        else:
            part, _, kind = name.rpartition(".")
            their_names = [f"transformer.{OUTER[part]}.{kind}" if part in OUTER else f"transformer.{OUTER[name]}"]
        for their_name in their_names:
            arrays[their_name] = [len(tensor) // len(their_names), *tensor.shape[1:]]
        state[name] = torch.cat(
            [torch.from_numpy(draw(their_name, tuple(arrays[their_name]))) for their_name in their_names]
        )
    vit.load_state_dict(state)
    b, t = video.shape[:2]
    share = vit.embed_dim // fold

    def shift(x):
        x = x.unflatten(0, (b, t)).clone()
        old = x[:, :, 0].clone()
        x[:, :, 0, : 2 * share] = 0
        x[:, :-1, 0, :share] = old[:, 1:, :share]
        x[:, 1:, 0, share : 2 * share] = old[:, :-1, share : 2 * share]
        return x.flatten(0, 1)

    x = vit._pos_embed(vit.patch_embed(video.flatten(0, 1).permute(0, 3, 1, 2)))
    for block in vit.blocks:
        x = shift(x)
        x = shift(x + block.attn(block.norm1(x)))
        x = x + block.mlp(block.norm2(x))
    logits = vit.head(vit.norm(x)[:, 0]).unflatten(0, (b, t)).mean(1)
    return {"arrays": arrays, "logits": logits.tolist(), "version": f"timm {timm.__version__}"}


class VTN(torch.nn.Module):
    """Video (b t y x 3) -> logits. Positions: 286 frames, the class token, and padding, which is not used."""

    def __init__(self):
        super().__init__()
        self.backbone = timm.create_model("vit_tiny_patch16_224", img_size=SIDE, num_classes=0, depth=3)
        self.cls_token = torch.nn.Parameter(torch.zeros(1, 1, 192))
        self.temporal_encoder = transformers.LongformerModel(
            transformers.LongformerConfig(
                hidden_size=192,
                num_hidden_layers=2,
                num_attention_heads=3,
                intermediate_size=768,
                attention_window=[4, 4],
                max_position_embeddings=288,
                type_vocab_size=2,
                layer_norm_eps=1e-12,
            ),
            add_pooling_layer=False,
        )
        self.temporal_encoder.embeddings.word_embeddings = None
        self.mlp_head = torch.nn.Sequential(
            torch.nn.LayerNorm(192),
            torch.nn.Linear(192, 192),
            torch.nn.GELU(),
            torch.nn.Dropout(0.5),
            torch.nn.Linear(192, CLASSES),
        )

    def forward(self, video):
        b, t = video.shape[:2]
        frames = self.backbone(video.flatten(0, 1).permute(0, 3, 1, 2)).unflatten(0, (b, t))
        tokens = torch.cat([self.cls_token.expand(b, -1, -1), frames], dim=1)
        is_class = (torch.arange(1 + t) == 0).long().expand(b, -1)
        places = torch.cat([torch.tensor([286]), torch.arange(t)]).expand(b, -1)
        read = self.temporal_encoder(
            inputs_embeds=tokens,
            attention_mask=torch.ones(b, 1 + t).long(),
            global_attention_mask=is_class,
            token_type_ids=is_class,
            position_ids=places,
        )
        return self.mlp_head(read.last_hidden_state[:, 0])


def vtn(video):
    model = fill(VTN())
    return {
        "arrays": shapes(model),
        "logits": model(video).tolist(),
        "version": f"timm {timm.__version__}, transformers {transformers.__version__}",
    }


def main():
    torch.set_grad_enabled(False)
    images = clip((2, SIDE, SIDE, 3)).transpose(0, 3, 1, 2)
    video = clip((2, 4, SIDE, SIDE, 3)).transpose(0, 1, 4, 2, 3)
    labels = dict(num_labels=CLASSES)
    goldens = {
        "timm_vit": run_timm("vit_tiny_patch16_224"),
        "timm_deit": run_timm("deit_tiny_patch16_224"),
        "timm_dinov2": run_timm("vit_small_patch14_dinov2", embed_dim=192, num_heads=3, patch_size=16),
        "hf_vit": run_hugging_face(
            transformers.ViTForImageClassification, transformers.ViTConfig(**TINY, **labels), images
        ),
        "hf_dinov2": run_hugging_face(
            transformers.Dinov2Model,
            transformers.Dinov2Config(**{key: value for key, value in TINY.items() if key != "intermediate_size"}),
            images,
            "pooler_output",
        ),
        **{
            name: run_hugging_face(
                transformers.TimesformerForVideoClassification,
                transformers.TimesformerConfig(**TINY, num_frames=4, attention_type=kind, **labels),
                video,
            )
            for name, kind in (("hf_timesformer", "divided_space_time"), ("hf_timesformer_joint", "joint_space_time"))
        },
        "hf_vivit": run_hugging_face(
            transformers.VivitForVideoClassification,
            transformers.VivitConfig(
                **{key: value for key, value in TINY.items() if key != "patch_size"},
                num_frames=8,
                tubelet_size=[2, 16, 16],
                **labels,
            ),
            clip((2, 8, SIDE, SIDE, 3)).transpose(0, 1, 4, 2, 3),
        ),
        "torchvision_swin": run_torchvision(torch.from_numpy(clip((2, 8, 32, 32, 3)))),
        "tokenshift": tokenshift(torch.from_numpy(clip((2, 4, SIDE, SIDE, 3)))),
        "vtn": vtn(torch.from_numpy(clip((2, 7, SIDE, SIDE, 3)))),
    }
    path = Path(__file__).with_name("pretrained.json")
    path.write_text(json.dumps(goldens) + "\n")
    for name, golden in goldens.items():
        logits = torch.tensor(golden.get("logits", golden.get("pooler_output")))
        print(name, golden["version"], f"spread {float(logits.std()):.2f}", len(golden["arrays"]))


if __name__ == "__main__":
    main()
