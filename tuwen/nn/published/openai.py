"""OpenAI's CLIP by its own names of tensors, which open_clip and cn_clip keep."""

from tuwen.nn.published.names import NameEntry, both, same
from tuwen.nn.sizes import ImageTowerConfig, TextTowerConfig


def image_entries(tower: ImageTowerConfig) -> list[NameEntry]:
    """Names without any prefix, the projection apart."""
    out = [same("patches.weight", "conv1.weight"), same("class_token", "class_embedding")]
    out += [same("positions", "positional_embedding"), *both("pre_norm", "ln_pre")]
    return out + _blocks(tower.layers) + both("stack.norm", "ln_post")


def text_entries(tower: TextTowerConfig) -> list[NameEntry]:
    """Names without any prefix, the projection apart."""
    out = [same("words.weight", "token_embedding.weight"), same("positions", "positional_embedding")]
    return out + _blocks(tower.layers) + both("stack.norm", "ln_final")


def turned(ours: str, theirs: str) -> NameEntry:
    """A projection that theirs holds as [from, to], ours as [to, from]."""
    return NameEntry((ours,), (theirs,), lambda t: [t[0].mT], lambda o: [o[0].mT])


def _blocks(layers: int) -> list[NameEntry]:
    """Queries, keys and values are one tensor on both sides."""
    names = {
        "attention.out": "attn.out_proj",
        "attention_norm": "ln_1",
        "feed_forward.0": "mlp.c_fc",
        "feed_forward.2": "mlp.c_proj",
        "feed_forward_norm": "ln_2",
    }
    out = []
    for k in range(layers):
        mine, other = f"stack.blocks.{k}", f"transformer.resblocks.{k}"
        for kind in ("weight", "bias"):
            out.append(same(f"{mine}.attention.query_key_value.{kind}", f"{other}.attn.in_proj_{kind}"))
        out += [entry for ours, theirs in names.items() for entry in both(f"{mine}.{ours}", f"{other}.{theirs}")]
    return out
