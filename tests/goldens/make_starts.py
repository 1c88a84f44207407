"""Writes starts.json: as pretrained.json, for the files from which ResNet-50, CvT, Swin and ViViT start.

torchvision, timm and transformers compute the logits. Of the code of CvT's, Video Swin's and ViViT's authors only the
names and shapes of the arrays are used: CvT's is Hugging Face's model with QuickGELU, Video Swin's is torchvision's
model, and Scenic's ViViT is Hugging Face's. To write the file again, where timm, torch, torchvision and transformers
are installed:

    PYTHONPATH=tests:tests/goldens python tests/goldens/make_starts.py
"""

import json
import re
from pathlib import Path

import timm
import torch
import torchvision
import transformers
from drawn import clip, draw
from make_pretrained import CLASSES, SIDE, TINY, fill, floats, run_hugging_face, shapes

TORCHVISION, TRANSFORMERS = f"torchvision {torchvision.__version__}", f"transformers {transformers.__version__}"
SWIN_SIDE, CVT = 32, dict(embed_dim=(16, 48, 96), num_heads=(1, 3, 6), depth=(1, 2, 3), num_labels=CLASSES)


def pixels(*shape):
    """Returns normalised images (b c y x) or clips (b c t y x) of the shape with channels last."""
    return torch.from_numpy(clip((2, *shape, 3))).movedim(-1, 1)


def run(model, video, version):
    return {"arrays": shapes(model), "logits": model(video).tolist(), "version": version}


def resnet():
    """The first three stages of a ResNet with few blocks. timm has the same names, and must give the same logits."""
    images, golden = pixels(48, 48), None
    for model in (
        torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 2, 1, 1]),
        timm.models.resnet.ResNet(timm.models.resnet.Bottleneck, [1, 2, 1, 1]),
    ):
        model.layer4, model.fc = torch.nn.Identity(), torch.nn.Linear(1024, CLASSES)
        found = run(fill(model), images, f"{TORCHVISION}, timm {timm.__version__}")
        assert golden is None or golden["arrays"] == found["arrays"]
        assert golden is None or torch.allclose(
            torch.tensor(golden["logits"]), torch.tensor(found["logits"]), atol=1e-5
        )
        golden = golden or found
    return golden


class QuickGelu(torch.nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


CVT_NAMES = (
    (r"cvt\.encoder\.stages\.(\d)\.cls_token", r"stage\1.cls_token"),
    (r"cvt\.encoder\.stages\.(\d)\.embedding\.convolution_embeddings\.projection", r"stage\1.patch_embed.proj"),
    (r"cvt\.encoder\.stages\.(\d)\.embedding\.convolution_embeddings\.normalization", r"stage\1.patch_embed.norm"),
    (r"cvt\.encoder\.stages\.(\d)\.layers\.(\d+)\.", r"stage\1.blocks.\2."),
    (r"attention\.attention\.convolution_projection_(.)\w+\.convolution_projection", r"attn.conv_proj_\1"),
    (r"attention\.attention\.projection_(.)[a-z]+", r"attn.proj_\1"),
    (r"attention\.output\.dense", "attn.proj"),
    (r"convolution\.", "conv."),
    (r"normalization\.", "bn."),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"^layernorm", "norm"),
    (r"^classifier", "head"),
)


def translated(model, names, video, answer, version):
    """Returns the golden of a model whose arrays have other names in the files of its authors."""
    arrays, state = {}, {}
    for name, tensor in floats(model).items():
        theirs = name
        for pattern, replacement in names:
            theirs = re.sub(pattern, replacement, theirs)
        arrays[theirs] = list(tensor.shape)
        state[name] = torch.from_numpy(draw(theirs, tuple(tensor.shape)))
    model.load_state_dict(state, strict=False)
    return {"arrays": arrays, "logits": answer(model.eval(), video).tolist(), "version": version}


def cvt_of_its_authors():
    model = transformers.CvtForImageClassification(transformers.CvtConfig(**CVT))
    for name, module in list(model.named_modules()):
        if name.endswith(".intermediate"):
            module.activation = QuickGelu()
    images = pixels(40, 40)
    return translated(model, CVT_NAMES, images, lambda model, images: model(images).logits, TRANSFORMERS)


def video_swin(window):
    return torchvision.models.video.SwinTransformer3d([2, 4, 4], 32, [2, 2], [2, 4], window, num_classes=CLASSES)


VIDEO_SWIN_NAMES = (
    (r"^features\.0\.", "backbone.layers.0.blocks."),
    (r"^features\.2\.", "backbone.layers.1.blocks."),
    (r"^features\.1\.", "backbone.layers.0.downsample."),
    (r"^(patch_embed|norm)\.", r"backbone.\1."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
    (r"^head\.", "cls_head.fc_cls."),
)


def video_swin_of_its_authors():
    model, video = video_swin([2, 4, 4]), pixels(8, SWIN_SIDE, SWIN_SIDE)
    golden = translated(model, VIDEO_SWIN_NAMES, video, lambda model, video: model(video), TORCHVISION)
    return golden | {"rows": model.features[0][0].attn.relative_position_index.tolist()}


def space_only(frames=4):
    """TimeSformer with attention in space only, of timm's ViT: its authors average the frames before the norm."""
    model = fill(timm.create_model("vit_tiny_patch16_224", img_size=SIDE, num_classes=CLASSES, depth=3))
    video = torch.from_numpy(clip((2, frames, SIDE, SIDE, 3))).flatten(0, 1).movedim(-1, 1)
    tokens = model.blocks(model._pos_embed(model.patch_embed(video))).unflatten(0, (2, frames))
    logits = model.head(model.norm(tokens.mean(1))[:, 0])
    return {"arrays": shapes(model), "logits": logits.tolist(), "version": f"timm {timm.__version__}"}


def swin_of_timm():
    model = timm.models.swin_transformer.SwinTransformer(
        img_size=SWIN_SIDE, embed_dim=32, depths=(2, 2), num_heads=(2, 4), window_size=4, num_classes=CLASSES
    )
    return run(fill(model), pixels(SWIN_SIDE, SWIN_SIDE), f"timm {timm.__version__}")


def swin_of_torchvision():
    model = torchvision.models.SwinTransformer([4, 4], 32, [2, 2], [2, 4], [4, 4], num_classes=CLASSES)
    golden = run(fill(model), pixels(SWIN_SIDE, SWIN_SIDE), TORCHVISION)
    return golden | {"rows": model.features[1][0].attn.relative_position_index.tolist()}


def swin_of_hugging_face():
    config = transformers.SwinConfig(
        image_size=SWIN_SIDE, embed_dim=32, depths=[2, 2], num_heads=[2, 4], window_size=4, num_labels=CLASSES
    )
    return run_hugging_face(transformers.SwinForImageClassification, config, pixels(SWIN_SIDE, SWIN_SIDE).numpy())


def vivit_of_scenic():
    """Flax has kernels (in, out), those of attention with heads on an axis of their own."""
    frames, heads = 8, TINY["num_attention_heads"]
    config = {key: value for key, value in TINY.items() if key != "patch_size"}
    model = transformers.VivitForVideoClassification(
        transformers.VivitConfig(**config, num_frames=frames, tubelet_size=[2, 16, 16], num_labels=CLASSES)
    )
    width, head = config["hidden_size"], config["hidden_size"] // heads
    arrays, state = {}, {}

    def take(theirs, shape):
        arrays[theirs] = list(shape)
        return torch.from_numpy(draw(theirs, tuple(shape)))

    def linear(name, theirs, inputs, outputs, inner=None):
        kernel = take(f"{theirs}/kernel", inner or (inputs, outputs)).reshape(inputs, outputs)
        bias = (heads, head) if inner and inner[0] == width else (outputs,)
        state[f"{name}.weight"] = kernel.T
        state[f"{name}.bias"] = take(f"{theirs}/bias", bias).flatten()

    def norm(name, theirs):
        state[f"{name}.weight"] = take(f"{theirs}/scale", (width,))
        state[f"{name}.bias"] = take(f"{theirs}/bias", (width,))

    embeddings = "vivit.embeddings"
    projection = f"{embeddings}.patch_embeddings.projection"
    state[f"{projection}.weight"] = take("embedding/kernel", (2, 16, 16, 3, width)).permute(4, 3, 0, 1, 2)
    state[f"{projection}.bias"] = take("embedding/bias", (width,))
    state[f"{embeddings}.cls_token"] = take("cls", (1, 1, width))
    tokens = 1 + frames // 2 * (SIDE // 16) ** 2
    state[f"{embeddings}.position_embeddings"] = take("Transformer/posembed_input/pos_embedding", (1, tokens, width))
    for i in range(config["num_hidden_layers"]):
        block, theirs = f"vivit.layers.{i}", f"Transformer/encoderblock_{i}"
        attention = f"{theirs}/MultiHeadDotProductAttention_0"
        for name in ("query", "key", "value"):
            inner = (width, heads, head)
            linear(f"{block}.attention.{name[0]}_proj", f"{attention}/{name}", width, width, inner)
        linear(f"{block}.attention.o_proj", f"{attention}/out", width, width, (heads, head, width))
        norm(f"{block}.layernorm_before", f"{theirs}/LayerNorm_0")
        norm(f"{block}.layernorm_after", f"{theirs}/LayerNorm_1")
        linear(f"{block}.mlp.fc1", f"{theirs}/MlpBlock_0/Dense_0", width, 4 * width)
        linear(f"{block}.mlp.fc2", f"{theirs}/MlpBlock_0/Dense_1", 4 * width, width)
    norm("vivit.layernorm", "Transformer/encoder_norm")
    linear("classifier", "output_projection", width, CLASSES)
    video = torch.from_numpy(clip((2, frames, SIDE, SIDE, 3))).movedim(-1, 2)
    model.load_state_dict(state)
    return {"arrays": arrays, "logits": model.eval()(video).logits.tolist(), "version": TRANSFORMERS}


def main():
    torch.set_grad_enabled(False)
    goldens = {
        "resnet": resnet(),
        "hf_cvt": run_hugging_face(
            transformers.CvtForImageClassification, transformers.CvtConfig(**CVT), pixels(40, 40).numpy()
        ),
        "cvt": cvt_of_its_authors(),
        "timm_swin": swin_of_timm(),
        "torchvision_swin2d": swin_of_torchvision(),
        "hf_swin": swin_of_hugging_face(),
        "space_only": space_only(),
        "video_swin": video_swin_of_its_authors(),
        "scenic_vivit": vivit_of_scenic(),
    }
    Path(__file__).with_name("starts.json").write_text(json.dumps(goldens) + "\n")
    for name, golden in goldens.items():
        print(
            name, golden["version"], f"spread {float(torch.tensor(golden['logits']).std()):.2f}", len(golden["arrays"])
        )


if __name__ == "__main__":
    main()
