"""Writes longformer.npz: a small Hugging Face Longformer with random weights, called as in VTN, and its outputs.

Needs torch and transformers. The library and its tests import neither: the tests read the .npz file beside this script.
To write the file again, in an environment of its own:

    pip install torch transformers numpy
    python tests/goldens/make_longformer.py

The archive holds
    every parameter that influences the output, named as in `LongformerModel`;
    `class_token`, the embedding of the only token with global attention;
    `features` (b t d), `positions` and `mask` (b t) of the frames;
    `head.0` and `head.1`, a norm and a linear map, which GELU follows;
    `tokens` (b 1+t d), the last hidden state, and `output` (b d), the output of the head for the class token;
    `versions` (JSON).
The windows are 4, 4 and 8: two equal ones, and a larger one.
"""

import json
import pathlib
import platform

import numpy as np
import torch
import transformers

WIDTH, FRAMES, WINDOWS = 32, 14, [4, 4, 8]
CLASS_POSITION, PADDING_POSITION = 286, 287


def draw(rng, shape, center=0.0, scale=1.0):
    """Returns normal numbers rounded to multiples of 1/256, which are exact in float32 and compress well."""
    return (np.round(rng.normal(center, scale, shape) * 256) / 256).astype(np.float32)


def randomise(model, rng):
    """Draws every parameter, also those that start at zero or one, so that each of them influences the answers."""
    for parameter in model.parameters():
        parameter.data.copy_(torch.from_numpy(draw(rng, parameter.shape, scale=0.2)))
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.weight.data += 1


def main():
    rng = np.random.default_rng(0)
    config = transformers.LongformerConfig(
        vocab_size=3,
        pad_token_id=0,
        hidden_size=WIDTH,
        num_hidden_layers=len(WINDOWS),
        num_attention_heads=4,
        intermediate_size=4 * WIDTH,
        attention_window=WINDOWS,
        max_position_embeddings=PADDING_POSITION + 1,
        type_vocab_size=2,
        layer_norm_eps=1e-12,
    )
    model = transformers.LongformerModel(config, add_pooling_layer=False).eval()
    head = torch.nn.Sequential(torch.nn.LayerNorm(WIDTH), torch.nn.Linear(WIDTH, WIDTH), torch.nn.GELU())
    randomise(model, rng)
    randomise(head, rng)

    class_token, features = draw(rng, WIDTH), draw(rng, (2, FRAMES, WIDTH))
    positions = np.stack([280 + np.arange(FRAMES), 3 * np.arange(FRAMES)])  # the first clip passes row 285
    mask = np.arange(FRAMES) < np.array([[FRAMES], [9]])
    rows = np.where(mask, positions % CLASS_POSITION, PADDING_POSITION)
    tokens = np.concatenate([np.broadcast_to(class_token, (2, 1, WIDTH)), features], axis=1)
    is_class = torch.arange(1 + FRAMES).expand(2, -1) == 0
    with torch.inference_mode():
        hidden = model(
            inputs_embeds=torch.from_numpy(tokens),
            attention_mask=torch.from_numpy(np.pad(mask, ((0, 0), (1, 0)), constant_values=True)).long(),
            global_attention_mask=is_class.long(),
            token_type_ids=is_class.long(),
            position_ids=torch.from_numpy(np.pad(rows, ((0, 0), (1, 0)), constant_values=CLASS_POSITION)),
        ).last_hidden_state
        output = head(hidden[:, 0])

    parameters = {**model.state_dict(), **{f"head.{name}": value for name, value in head.state_dict().items()}}
    del parameters["embeddings.word_embeddings.weight"]  # frames come as embeddings
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    np.savez_compressed(
        pathlib.Path(__file__).parent / "longformer.npz",
        **{name: value.numpy() for name, value in parameters.items()},
        class_token=class_token,
        features=features,
        positions=positions.astype(np.int32),
        mask=mask,
        tokens=hidden.numpy(),
        output=output.numpy(),
        versions=np.array(json.dumps(versions)),
    )


if __name__ == "__main__":
    main()
