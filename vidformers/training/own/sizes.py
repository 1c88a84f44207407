"""The sizes of models from which one is chosen, from one that two cores train in minutes to ViT-B."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from vidformers.models.config import SIZES
from vidformers.models.registry import MODELS

Fields = dict[str, Any]  # full names, such as 'data.size' and 'model.width', and their values


class Scale(NamedTuple):
    """Pixels of a side, and the size of a transformer with patches of 16 x 16 pixels."""

    pixels: int
    width: int
    heads: int
    depth: int


# In steps of 2 to 10 times the multiply-adds. Three quarters of the rows are those of ViT: Ti, S and B.
_SCALES = (
    Scale(64, 64, 4, 3),
    Scale(96, 96, 3, 4),
    Scale(112, 128, 4, 6),
    Scale(112, *SIZES["Ti"]),
    Scale(160, *SIZES["Ti"]),
    Scale(224, *SIZES["Ti"]),
    Scale(224, *SIZES["S"]),
    Scale(224, *SIZES["B"]),
)
_PIXELS = (112, 160, 224)  # with published weights, whose size is that of the model
_PATCH = 16
_MOST_PATCH = 32

# Pyramids: pixels, and the fields of the model.
_PYRAMIDS: dict[str, tuple[tuple[int, Fields], ...]] = {
    "swin": (
        (64, dict(width=32, heads=2, depth=4, depths=(2, 2), patch_size=4, window=(4, 4, 4))),
        (112, dict(width=48, heads=3, depth=6, depths=(2, 2, 2), patch_size=4, window=(4, 7, 7))),
        (112, {}),
        (224, {}),
    ),
    "cvt": ((64, dict(width=24, heads=1, depth=4, depths=(1, 1, 2), patch_size=4)), (112, {}), (224, {})),
    "stat": ((64, dict(width=32, heads=2, depth=4, depths=(2, 2), patch_size=8)), (112, {}), (224, {})),
}


def candidates(name: str, given: Mapping[str, Any], weights: Mapping[str, Any] | None = None) -> list[Fields]:
    """Returns the fields of the models that come into question, the smallest first. All hold the given fields.

    Args:
        name: a key of `MODELS`.
        given: the fields that are kept, by their full names, such as 'model.width'.
        weights: the fields of the model of published weights, or None.
    """
    fixed = {field.removeprefix("model."): value for field, value in given.items() if field.startswith("model.")}
    fixed |= {"image_size": given["data.size"]} if "data.size" in given else {}
    fixed |= {"frames": given["data.frames"]} if "data.frames" in given else {}
    if weights is not None:
        rows = [_with_weights(name, pixels, fixed, dict(weights)) for pixels in _PIXELS]
    elif name in _PYRAMIDS:
        rows = [_pyramid(name, pixels, fields, fixed) for pixels, fields in _PYRAMIDS[name]]
    else:
        rows = [_transformer(name, scale, fixed) for scale in _SCALES]
    distinct = [row for number, row in enumerate(rows) if row not in rows[:number]]
    return [_full_names(row | fixed) for row in distinct]


def _full_names(row: Fields) -> Fields:
    shared = {"data.size": row.pop("image_size"), "data.frames": row.pop("frames")}
    return shared | {f"model.{field}": value for field, value in row.items()}


def _transformer(name: str, scale: Scale, fixed: Fields) -> Fields:
    if fixed.get("size") is not None:
        scale = Scale(scale.pixels, *SIZES.get(fixed["size"], SIZES["B"]))
    width, heads = fixed.get("width"), fixed.get("heads")
    if width is None:
        width = scale.width if heads is None else -(-scale.width // heads) * heads
    if heads is None:
        heads = scale.heads if width == scale.width else _heads(width)
    depth = fixed.get("depth") or max(scale.depth - _class_block(name, scale), fixed.get("motion_blocks", 0))
    row = _geometry(name, scale.pixels, fixed, _PATCH)
    row |= {"size": _size_name(width), "width": width, "heads": heads, "depth": depth}
    return row | _fields_of(name, depth, row["frames"], is_small=scale.depth < 12)


def _with_weights(name: str, pixels: int, fixed: Fields, weights: Fields) -> Fields:
    fixed = weights | fixed
    row = weights | _geometry(name, pixels, fixed, fixed.get("patch_size", MODELS[name].fields["patch_size"].default))
    if "width" in weights:
        row = {"size": _size_name(weights["width"])} | row
    if name == "mevit" and "motion_blocks" not in weights and fixed.get("depth"):
        row["motion_blocks"] = _motion_blocks(fixed["depth"])
    return row


def _pyramid(name: str, pixels: int, fields: Fields, fixed: Fields) -> Fields:
    patch = fields.get("patch_size", MODELS[name].fields["patch_size"].default)
    return _geometry(name, pixels, fixed, patch) | fields


def _geometry(name: str, pixels: int, fixed: Fields, patch: int) -> Fields:
    """Returns pixels, frames and patches. The patches divide the pixels and the frames."""
    size = fixed.get("image_size")
    if size is not None and size % patch:
        patch = max(side for side in range(1, _MOST_PATCH + 1) if size % side == 0 and side <= patch)
    patch = fixed.get("patch_size", patch)
    size = size or max(round(pixels / patch), 1) * patch
    row: Fields = {"image_size": size, "patch_size": patch}
    if "patch_frames" not in MODELS[name].fields:
        return row | {"frames": fixed.get("frames", 8)}
    # Patches of two frames show motion in the pixels of one token, and halve the number of tokens.
    frames = fixed.get("frames", 8 * fixed.get("patch_frames", 2))
    return row | {"frames": frames, "patch_frames": fixed.get("patch_frames", 1 if frames % 2 else 2)}


def _class_block(name: str, scale: Scale) -> int:
    """Returns how many of the blocks of a ViT are class attention: one of 12 in MEViT."""
    return 1 if name == "mevit" and scale.depth >= 12 else 0


def _motion_blocks(depth: int) -> int:
    """Returns the blocks with motion attention: 7 of 11, as in MEViT's paper, and all of a model of up to 3 blocks."""
    return max(round(7 / 11 * depth), min(depth, 3))


def _fields_of(name: str, depth: int, frames: int, is_small: bool) -> Fields:
    """Returns the fields that only one kind of model has."""
    if name == "mevit":
        return {"motion_blocks": _motion_blocks(depth)}
    if name == "timesformer":
        return {"starts_as_image": False}
    if name == "havit":
        return {"dictionary": 16 if is_small else 112, "class_blocks": 1}
    if name == "vtn":
        return {"temporal_depth": 2, "window": (frames,), "temporal_dropout": 0.0, "head_dropout": 0.0}
    return {}


def _heads(width: int) -> int:
    """Returns the number of heads that divides the width and comes nearest to a head width of 32."""
    return min((heads for heads in range(1, width + 1) if width % heads == 0), key=lambda h: abs(width / h - 32))


def _size_name(width: int) -> str:
    """Returns the smallest size of ViT that is at least as wide."""
    return next((name for name in ("Ti", "S", "B") if width <= SIZES[name].width), "L")
