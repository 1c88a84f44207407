"""Fitting a transformer of images or clips to a model with a ViT inside."""

import math

import numpy as np

from vidformers.attention.core import SelfAttention
from vidformers.attention.motion import Motion
from vidformers.attention.shifted import TokenShift
from vidformers.attention.time import Time
from vidformers.errors import ConfigError, require
from vidformers.layers.mlp import Mlp
from vidformers.models.encoder import Encoder, FramewiseEncoder
from vidformers.models.vtn import TemporalEncoder
from vidformers.pretrained.fit import Fit, resize, resize_grid, resize_time, with_views
from vidformers.pretrained.layouts.tokenshift import past_first


def backbone(model):
    """(the path of the encoder of patches, that encoder)."""
    if isinstance(model.encoder, FramewiseEncoder):
        return ("encoder", "encoder"), model.encoder.encoder
    return ("encoder",), model.encoder


class FitTransformer(Fit):
    """A `layouts.Transformer`, sublayer by sublayer, by what each attends to."""

    def place(self, model):
        source, (root, encoder) = self.source, backbone(model)
        if not isinstance(encoder, Encoder) or not hasattr(encoder.embedding, "patch_size"):
            self.no_place()
        shifts = [
            sublayer
            for stage in encoder.stages
            for sublayer in stage.layers.sublayers
            if isinstance(sublayer, TokenShift)
        ]
        if source.future_first and shifts:
            past_first(source, shifts[0].channels)
        self._embed(root, encoder)
        self._layers(root, encoder)
        self.allow("time", "attention over time" if "time" in source.blocks[0] and not self._timed else "")
        places = encoder.embedding.time is not None or encoder.embedding.joint
        self.allow("time", "positions of frames" if source.time is not None and not places else "")
        self.tree((*root, "norm"), source.norm, "norm")
        if isinstance(model.readout, TemporalEncoder) and source.readout is not None:
            self._readout(model.readout)
        else:
            self.allow("time", "layers over frames" if source.readout is not None else "")

    def _embed(self, root, encoder):
        source, embedding, at = self.source, encoder.embedding, (*root, "embedding")
        self.patch((*at, "patch"), embedding.patch_frames, embedding.patch_size)
        self.put((*root, "class_token"), source.classes[0], "loaded", "class token")
        grid = self._grid(embedding.grid)
        note = f"positions of {' x '.join(map(str, grid.shape[0 if source.joint else 1 : 3]))} patches"
        shape, table = (len(grid), *embedding.grid[1:]), grid
        if grid.shape[:3] != shape:
            table = resize(table, shape)
        if embedding.joint:
            table = self._joint(table, embedding.grid)
            note += ", for each frame" if not source.joint else ""
        elif source.joint:
            raise ConfigError("its positions are of space and time at once, those of the model of each alone")
        how = "loaded" if table.shape == grid.shape else "resized"
        self.put((*at, "space"), np.concatenate([source.space[:1], table.reshape(-1, table.shape[-1])]), how, note)
        if embedding.time is not None:
            self._times((*at, "time"), embedding.grid[0])

    def _grid(self, ours):
        """The table of patches (t y x d); t is 1 where it is that of a frame."""
        table, tubes = self.source.space[1:], 1
        if self.source.joint:
            tubes = self.source.tubes or (ours[0] if len(table) == math.prod(ours) else 0)
            require(
                tubes > 0,
                f"it does not say over how many frames its {len(table)} positions are: the config.json "
                "that belongs to it does.",
            )
        side = math.isqrt(len(table) // tubes)
        if tubes * side**2 != len(table):
            raise ConfigError(
                f"its {len(table)} positions are no square" + (f" in each of {tubes} frames" if tubes > 1 else "")
            )
        return table.reshape(tubes, side, side, -1)

    def _joint(self, table, grid):
        """A table (t y x d) over space and time; of separate ones it is the sum."""
        if self.source.time is not None:
            table = table + resize_time(self.source.time, grid[0])[:, None, None]
        return resize_grid(table, grid) if len(table) > 1 else np.repeat(table, grid[0], axis=0)

    def _times(self, path, frames):
        if self.source.time is not None:
            count = len(self.source.time)
            self.put(
                path,
                resize_time(self.source.time, frames),
                "loaded" if count == frames else "resized",
                f"positions of {count} frames",
            )
        elif self.init.time == "zero":
            self.zero(path)

    def _layers(self, root, encoder):
        number, blocks, self._timed = 0, self.source.blocks, False
        for place, stage in enumerate(encoder.stages):
            sublayers = list(stage.layers.sublayers)
            if not any(isinstance(sublayer, SelfAttention) for sublayer in sublayers):
                continue  # class attention, which image models do not have
            chosen = self._chosen(blocks, number, stage.depth, "layers")
            for j, sublayer in enumerate(sublayers):
                found = self._sublayer(sublayer, chosen)
                if found is None:
                    continue
                at = (*root, "stages", place, "layers", "sublayers", j)
                note, trees = found
                silent = note.endswith("with zero")
                if silent:
                    trees = [{name: part for name, part in tree.items() if name != "out"} for tree in trees]
                self.stack(at, trees, f"layers {number} to {number + stage.depth - 1}, {note}")
                if silent:
                    self.zero((*at, "out", "kernel"))
                    self.zero((*at, "out", "bias"))
            number += stage.depth
        self._rest(blocks, number, "layers")

    def _chosen(self, blocks, number, depth, what):
        if number + depth > len(blocks):
            raise ConfigError(f"it has {len(blocks)} {what}, and the model needs {number + depth} or more of them")
        return blocks[number : number + depth]

    def _rest(self, blocks, number, what):
        self.allow("layers", f"{what} {number} to {len(blocks) - 1}" if number < len(blocks) else "")

    def _sublayer(self, sublayer, blocks):
        """(what it is, its tree for each block), or None where it is drawn."""
        if isinstance(sublayer, Mlp):
            return "mlp", [block["mlp"] for block in blocks]
        if not isinstance(sublayer, SelfAttention):
            return None
        if not isinstance(sublayer.scheme, (Time, Motion)):
            return "space", [with_views(block["space"], sublayer) for block in blocks]
        self._timed = True
        if "time" in blocks[0]:
            trees = [dict(block["time"]) for block in blocks]
            if sublayer.extra is None:  # W (V x + b) + c is one product
                for tree in trees:
                    out, extra = tree["out"], tree.pop("extra")
                    tree["out"] = {
                        "kernel": out["kernel"] @ extra["kernel"],
                        "bias": out["bias"] @ extra["kernel"] + extra["bias"],
                    }
            return "time", [with_views(tree, sublayer) for tree in trees]
        if self.init.time == "draw":
            return None
        # An extra projection starts at zero by itself.
        note = "space with zero" if self.init.time == "zero" and sublayer.extra is None else "space"
        return note, [with_views(block["space"], sublayer) for block in blocks]

    def _readout(self, readout):
        tree = dict(self.source.readout)
        layers, number = tree.pop("layers"), 0
        self.tree(("readout",), tree, "readout")
        for place, stage in enumerate(readout.stages):
            if stage.layers.sublayers[0].tie_global:
                raise ConfigError(
                    "its class token reads by projections of its own, for which model.tie_global=True has no place"
                )
            chosen = self._chosen(layers, number, stage.depth, "layers over frames")
            for j, kind in enumerate(("window", "mlp")):
                self.stack(
                    ("readout", "stages", place, "layers", "sublayers", j),
                    [layer[j] for layer in chosen],
                    f"layers over frames {number} to {number + stage.depth - 1}, {kind}",
                )
            number += stage.depth
        self._rest(layers, number, "layers over frames")
