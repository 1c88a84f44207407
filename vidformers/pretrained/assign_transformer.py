"""Assigning the weights of a transformer for images or clips to the parameters of a model that contains a ViT."""

import math

import numpy as np

from vidformers.errors import ConfigError, require
from vidformers.layers.embedding import Embedding
from vidformers.models.encoder import Encoder
from vidformers.models.vtn import TemporalEncoder
from vidformers.pretrained.assign import Assignment, resize, resize_grid, resize_time, with_views
from vidformers.pretrained.layouts.tokenshift import past_first
from vidformers.pretrained.roles import ATTENTION, Role, block_roles, patch_encoder, sublayer_role


class TransformerAssignment(Assignment):
    """Assigns `layouts.TransformerWeights`. The role of a sublayer (`roles.block_roles`) decides what it loads."""

    def place(self, model):
        weights, (root, encoder) = self.weights, patch_encoder(model.encoder)
        if not isinstance(encoder, Encoder) or not isinstance(encoder.embedding, Embedding):
            self.refuse_model()
        blocks = [list(stage.layers.sublayers) for stage in encoder.stages]
        self.roles = [block_roles(sublayers, encoder.embedding.grid) for sublayers in blocks]
        has_readout = isinstance(model.readout, TemporalEncoder)
        self._check_heads(blocks, model.readout if has_readout else None)
        shifts = [sublayer for block in blocks for sublayer in block if sublayer_role(sublayer) is Role.SHIFT]
        if weights.future_first and shifts:
            past_first(weights, shifts[0].channels)
        self._place_embedding(root, encoder)
        self._place_stages(root, encoder)
        if "time" in weights.blocks[0] and not any(Role.TIME in roles for roles in self.roles):
            self.leave_out("time", "attention over time")
        if weights.time is not None and encoder.embedding.time is None and not encoder.embedding.joint:
            self.leave_out("time", "positions of frames")
        self.place_tree((*root, "norm"), weights.norm, "norm")
        if has_readout and weights.readout is not None:
            self._place_readout(model.readout)
        elif weights.readout is not None:
            self.leave_out("time", "layers over frames")

    def _check_heads(self, blocks, readout):
        """Refuses another number of heads, which the shapes of the arrays do not show."""
        heads, width = self.weights.heads, len(self.weights.class_tokens[0])
        if not heads or "heads" in self.init.allow:
            return
        attentions = [
            sublayer
            for block, roles in zip(blocks, self.roles, strict=True)
            for sublayer, role in zip(block, roles, strict=True)
            if role in ATTENTION
        ]
        if readout is not None:
            attentions += [stage.layers.sublayers[0] for stage in readout.stages]
        for attention in attentions:
            if attention.heads != heads and attention.qkv.in_features == width:
                raise ConfigError(
                    f"it was trained with {heads} heads, and model.heads is {attention.heads}; "
                    "init.allow=\"('heads',)\" loads it anyway"
                )

    def _place_embedding(self, root, encoder):
        weights, embedding, path = self.weights, encoder.embedding, (*root, "embedding")
        self.place_patch((*path, "patch"), embedding.patch_frames, embedding.patch_size)
        self.place_array((*root, "class_token"), weights.class_tokens[0], "loaded", "class token")
        grid = self._position_grid(embedding.grid)
        note = f"positions of {' x '.join(map(str, grid.shape[0 if weights.joint_positions else 1 : 3]))} patches"
        shape, table = (len(grid), *embedding.grid[1:]), grid
        self.check_width((*path, "space"), table, note)
        if grid.shape[:3] != shape:
            table = resize(table, shape)
        if embedding.joint:
            table = self._joint_positions((*path, "space"), table, embedding.grid)
            note += ", for each frame" if not weights.joint_positions else ""
        elif weights.joint_positions:
            raise ConfigError("it has joint positions of space and time, and the model has separate ones")
        how = "loaded" if table.shape == grid.shape else "resized"
        table = np.concatenate([weights.space[:1], table.reshape(-1, table.shape[-1])])
        self.place_array((*path, "space"), table, how, note)
        if embedding.time is not None:
            self._place_time_positions((*path, "time"), embedding.grid[0])

    def _position_grid(self, model_grid):
        """Returns the position table of the patches as (t y x d). t is 1 unless the positions are joint."""
        table, frames = self.weights.space[1:], 1
        if self.weights.joint_positions:
            frames = self.weights.position_frames or (model_grid[0] if len(table) == math.prod(model_grid) else 0)
            require(
                frames > 0,
                f"it does not say over how many frames its {len(table)} positions extend. Put the config.json that "
                "belongs to the file into the same folder.",
            )
        side = math.isqrt(len(table) // frames)
        if frames * side**2 != len(table):
            raise ConfigError(
                f"its {len(table)} positions do not form a square" + (f" in each of {frames} frames" * (frames > 1))
            )
        return table.reshape(frames, side, side, -1)

    def _joint_positions(self, path, table, grid):
        """Returns the table (t y x d) of joint positions. Separate positions of space and time are added."""
        if self.weights.time is not None:
            self.check_width(path, self.weights.time, f"positions of {len(self.weights.time)} frames")
            table = table + resize_time(self.weights.time, grid[0])[:, None, None]
        return resize_grid(table, grid) if len(table) > 1 else np.repeat(table, grid[0], axis=0)

    def _place_time_positions(self, path, frames):
        if self.weights.time is not None:
            count = len(self.weights.time)
            how, note = "loaded" if count == frames else "resized", f"positions of {count} frames"
            self.check_width(path, self.weights.time, note)
            self.place_array(path, resize_time(self.weights.time, frames), how, note)
        elif self.init.time == "zero":
            self.place_zeros(path)

    def _place_stages(self, root, encoder):
        first, blocks = 0, self.weights.blocks
        for i, (stage, roles) in enumerate(zip(encoder.stages, self.roles, strict=True)):
            if not any(role in ATTENTION for role in roles):
                continue  # class attention
            layers = _layers(blocks, first, stage.depth, "layers")
            span = f"layers {first} to {first + stage.depth - 1}"
            for j, (sublayer, role) in enumerate(zip(stage.layers.sublayers, roles, strict=True)):
                self._place_sublayer((*root, "stages", i, "layers", "sublayers", j), sublayer, role, layers, span)
            first += stage.depth
        self._leave_out_rest(blocks, first, "layers")

    def _place_sublayer(self, path, sublayer, role, blocks, span):
        """Places the arrays of one sublayer, stacked over the layers of its stage."""
        if role is Role.SHIFT:
            return
        if role is Role.MLP:
            self.place_layers(path, [block["mlp"] for block in blocks], f"{span}, mlp")
        elif role is Role.TIME and "time" in blocks[0]:
            trees = [block["time"] if sublayer.extra is not None else _without_extra(block["time"]) for block in blocks]
            self.place_layers(path, [with_views(tree, sublayer) for tree in trees], f"{span}, time")
        elif role is Role.IMAGE or self.init.time != "draw":
            trees, note = [with_views(block["space"], sublayer) for block in blocks], f"{span}, space"
            # An extra projection is always initialised to zero, so the output projection need not be zero.
            if role is Role.IMAGE or self.init.time == "copy" or sublayer.extra is not None:
                self.place_layers(path, trees, note)
                return
            trees = [{name: array for name, array in tree.items() if name != "out"} for tree in trees]
            self.place_layers(path, trees, f"{note} with zero")
            self.place_zeros((*path, "out", "kernel"))
            self.place_zeros((*path, "out", "bias"))

    def _leave_out_rest(self, blocks, first, name):
        if first < len(blocks):
            self.leave_out("layers", f"{name} {first} to {len(blocks) - 1}")

    def _place_readout(self, readout):
        tree = dict(self.weights.readout)
        layers, first = tree.pop("layers"), 0
        self.place_tree(("readout",), tree, "readout")
        for i, stage in enumerate(readout.stages):
            if stage.layers.sublayers[0].tie_global:
                raise ConfigError(
                    "its class token has its own projections for global attention, and model.tie_global=True has none"
                )
            stage_layers = _layers(layers, first, stage.depth, "layers over frames")
            for j, name in enumerate(("window", "mlp")):
                self.place_layers(
                    ("readout", "stages", i, "layers", "sublayers", j),
                    [layer[j] for layer in stage_layers],
                    f"layers over frames {first} to {first + stage.depth - 1}, {name}",
                )
            first += stage.depth
        self._leave_out_rest(layers, first, "layers over frames")


def _layers(blocks, first, depth, name):
    """Returns `depth` layers, starting with the layer `first`."""
    if first + depth > len(blocks):
        raise ConfigError(f"it has {len(blocks)} {name}, and the model needs at least {first + depth}")
    return blocks[first : first + depth]


def _without_extra(tree):
    """Merges the extra projection into the output projection: (x W + b) V + c is one linear map."""
    out, extra = tree["out"], tree["extra"]
    shape = extra["kernel"].shape
    require(shape == 2 * out["bias"].shape, f"the projection after its attention over time has the shape {shape}")
    merged = {
        "kernel": out["kernel"] @ extra["kernel"],
        "bias": out["bias"] @ extra["kernel"] + extra["bias"],
    }
    return {name: array for name, array in tree.items() if name != "extra"} | {"out": merged}
