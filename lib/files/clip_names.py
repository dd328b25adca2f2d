"""What a CLIP's layers are called in transformers, from what they are called in open_clip.

transformers keeps queries, keys and values apart, open_clip stacks them, in this order. Its projections are transposed.
"""

from __future__ import annotations

# Parts of names in open_clip -> in transformers, of both towers; weights and biases of attention's input follow below.
RENAMED = (
    ("transformer.resblocks.", "encoder.layers."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".attn.out_proj.", ".self_attn.out_proj."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
    ("ln_pre.", "pre_layrnorm."),  # spelt like this there
    ("ln_post.", "post_layernorm."),
    ("ln_final.", "final_layer_norm."),
    ("conv1.weight", "embeddings.patch_embedding.weight"),
    ("token_embedding.weight", "embeddings.token_embedding.weight"),
    ("class_embedding", "embeddings.class_embedding"),
    ("positional_embedding", "embeddings.position_embedding.weight"),
)
WHOLE = {
    "visual.proj": "visual_projection.weight",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
TRANSPOSED = ("visual.proj", "text_projection")


def tower_sources(name: str) -> tuple[str, ...]:
    """The layers of one tower in transformers that a layer of open_clip is made of, without the tower's name."""
    for ours, theirs in RENAMED:
        name = name.replace(ours, theirs)
    block, stacked, kind = name.partition(".attn.in_proj_")
    return tuple(f"{block}.self_attn.{part}_proj.{kind}" for part in "qkv") if stacked else (name,)


def sources(name: str) -> tuple[str, ...]:
    """The layers of transformers' `CLIPModel` that a layer of open_clip's `CLIP` is made of; several are stacked."""
    if name in WHOLE:
        return (WHOLE[name],)
    tower = "vision_model." if name.startswith("visual.") else "text_model."
    return tuple(tower + part for part in tower_sources(name.removeprefix("visual.")))
