"""HaViT: hybrid attention, to the patches of the clip and to a dictionary of external tokens, then class attention.

Paper: Li, Zhuang, Gao and Wang, "HaViT: Hybrid-Attention Based Vision Transformer for Video Classification", 2022.

    divided:  depth        x [ time attention -> space attention -> MLP ]     each attention layer with a dictionary
    joint:    depth        x [ joint attention -> MLP ]                       with a dictionary
    the class token is appended
              class_blocks x [ class attention -> MLP of the class token ]

The clip has one class token. The paper gives neither the size of the dictionary, `model.dictionary`, nor the number of
class-attention layers: 112 and 2 agree with the parameters of its Table 6 (26.4 M joint, 34.5 M divided at width 384).
One dictionary for each kind of attention, which all layers share, agrees with them too, for any size from 1,285 to
1,349. `swin.py` and `cvt.py` are the other models of Table 7 to which the paper adds a dictionary.
"""

from functools import partial

from flax import nnx

from vidformers.attention.dictionary import Dictionary, SharedDictionary
from vidformers.attention.frame import Frame
from vidformers.attention.joint import Joint
from vidformers.attention.time import Time
from vidformers.errors import require
from vidformers.layers.embedding import unit_norm_init
from vidformers.models.config import MAX_DEPTH, ModelConfig
from vidformers.models.encoder import Block, Classifier, StageSpec


def havit(
    config: ModelConfig,
    *,
    attention: str = "divided",
    class_blocks: int = 2,
    class_token: str = "late",
    temporal_fc: bool = False,
    share_dictionary: bool = False,
    dictionary_per: str = "layer",
    external_mlp: bool = False,
    rngs: nnx.Rngs,
) -> Classifier:
    """Returns a HaViT.

    Args:
        attention: 'divided' or 'joint'. Joint attention with model.kernel=relu or cosine is the paper's linear
            activation or cosine re-weighting (Table 6).
        class_blocks: class-attention layers after the `depth` hybrid blocks (eq. 8, 9).
        class_token: 'late', appended at class attention (sec. 3.3), or 'input', a key from the first block on (eq. 1).
        temporal_fc: adds `extra_projection` to time attention, as TimeSformer does.
        share_dictionary: time and space attention share one dictionary. False: each has its own.
        dictionary_per: 'layer', or 'model': all blocks share one dictionary for each kind of attention (time, space or
            joint), or one in all with `share_dictionary`.
        external_mlp: applies the feed-forward network of eq. 6 to the result of external attention, with parameters of
            its own in every dictionary, except with model.hybrid=combined, which has no such result. False: the MLP of
            the block, which acts on the sum of both attentions, is this network.
    Raises:
        ConfigError: an unknown choice, or a late class token without class attention.
    """
    require(attention in ("divided", "joint"), f"model.attention={attention!r} must be divided or joint.")
    require(class_token in ("late", "input"), f"model.class_token={class_token!r} must be late or input.")
    early_class = class_token == "input"  # the class token takes part in self-attention
    least = 0 if early_class else 1
    require(
        least <= class_blocks <= MAX_DEPTH,
        f"model.class_blocks={class_blocks} must be from {least} to {MAX_DEPTH:,} with model.class_token="
        f"{class_token}.",
    )
    require(not temporal_fc or attention == "divided", "model.temporal_fc=True needs model.attention=divided.")
    require(dictionary_per in ("layer", "model"), f"model.dictionary_per={dictionary_per!r} must be layer or model.")
    if attention == "divided":
        time = config.attention(Time(), class_keys=early_class, class_queries=False, extra_projection=temporal_fc)
        space = config.attention(Frame(), class_keys=early_class, class_queries=early_class)
        attentions = {"time": time, "space": space}
    else:
        attentions = {"joint": config.attention(Joint(), class_keys=early_class, class_queries=early_class)}
    return config.classifier(
        _hybrid_stage(config, attentions, share_dictionary, dictionary_per == "model", external_mlp),
        config.stage(
            class_blocks, config.class_attention(), config.mlp(updates_patches=False), late_class=not early_class
        ),
        temporal_init=unit_norm_init,
        rngs=rngs,
    )


def _hybrid_stage(config: ModelConfig, attentions, shares_kinds: bool, shares_layers: bool, has_mlp: bool) -> StageSpec:
    """Returns the spec of the hybrid blocks.

    Args:
        attentions: {kind of attention: make(rngs, dictionary)} of a block, in order.
        shares_kinds, shares_layers: whether the attentions of a block, and the blocks, share a dictionary.
        has_mlp: whether dictionaries have an `ExternalMlp`.
    """
    names = {kind: "all" if shares_kinds else kind for kind in attentions}
    make_dictionary = partial(config.make_dictionary, mlp_ratio=config.mlp_ratio if has_mlp else 0)
    of_stage = {name: make_dictionary for name in names.values()} if shares_layers and config.dictionary else {}

    def block(rngs: nnx.Rngs) -> Block:
        dictionaries: dict[str, Dictionary | None] = {name: SharedDictionary(name, config.hybrid) for name in of_stage}
        sublayers: list[nnx.Module] = []
        for kind, make in attentions.items():
            if names[kind] not in dictionaries:
                dictionaries[names[kind]] = make_dictionary(rngs)
            sublayers.append(make(rngs, dictionaries[names[kind]]))
        return Block([*sublayers, config.mlp()(rngs=rngs)])

    return StageSpec(block, config.depth, dictionaries=of_stage)
