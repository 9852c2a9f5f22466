"""Small random checkpoints as `save_pretrained` of transformers writes them, with tokenizer and preprocessing."""

import json
from pathlib import Path

import tokenizers
import torch

from tuwen.data.tokenizer_training import wordpiece

WORDS = 60
IDS = torch.tensor([[2, 17, 9, 30, 3, 0, 0, 0], [2, 8, 8, 41, 22, 11, 7, 3], [2, 3, 0, 0, 0, 0, 0, 0]])
VISION = {"hidden_size": 24, "intermediate_size": 60, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"image_size": 32, "patch_size": 8}
TEXT = {"hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2}
TEXT |= {"vocab_size": WORDS, "max_position_embeddings": 20, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
ROBERTA = TEXT | {"max_position_embeddings": 22, "pad_token_id": 1, "type_vocab_size": 1}


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Every weight away from its default, so that a swapped name or a forgotten bias shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter + 0.2 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(1 + torch.rand(buffer.shape, generator=generator))
            elif name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
    return model.eval()


def pieces(roberta: bool = False) -> list[str]:
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if roberta else ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(k) for k in range(97, 97 + 26)]
    return [*names, *letters, *(f"##{letter}" for letter in letters)][:WORDS]


def write_tokenizer(folder: Path, roberta: bool = False) -> None:
    inner = wordpiece(pieces(roberta), tokenizers.normalizers.BertNormalizer(lowercase=True))
    inner.save(str(folder / "tokenizer.json"))
    roles = ("cls", "pad", "sep", "unk", "mask") if roberta else ("pad", "unk", "cls", "sep", "mask")
    told = {f"{role}_token": name for role, name in zip(roles, pieces(roberta), strict=False)}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))


def write_pictures(folder: Path, side: int = 32, **changes) -> None:
    found = {
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.25, 0.3],
        "image_processor_type": "CLIPImageProcessor",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(found | changes))


def saved(model: torch.nn.Module, folder: Path, roberta: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    write_tokenizer(folder, roberta)
    write_pictures(folder)
    return folder
