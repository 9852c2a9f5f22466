"""FLAVA and BridgeTower of transformers as run folders, and back: the same outputs from disk on padded batches."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tuwen
from tests.exchange.checkpoints import IDS, WORDS, randomised, saved, write_tokenizer
from tuwen.data.batch import Images, Texts
from tuwen.errors import UserError
from tuwen.exchange.exporting import export_model
from tuwen.exchange.importing import import_model
from tuwen.nn.published.files import tensors_of
from tuwen.tasks.entailment import Entailment
from tuwen.tasks.heads import head_of
from tuwen.tasks.two_pictures import TwoPictures
from tuwen.tasks.vqa import VQA

t = pytest.importorskip("transformers")

REAL = IDS != 0
PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))
CLOSE = {"rtol": 0, "atol": 1e-5}
STACK = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96, "layer_norm_eps": 1e-12}


def flava(kind: str, codebook: bool = False):
    text = {**STACK, "num_hidden_layers": 2, "vocab_size": WORDS, "max_position_embeddings": 20, "pad_token_id": 0}
    config = t.FlavaConfig(
        image_config={**STACK, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8, "vocab_size": 50},
        text_config=text,
        multimodal_config={**STACK, "num_hidden_layers": 1},
        image_codebook_config={"hidden_size": 8, "num_blocks_per_group": 1, "vocab_size": 50},
        hidden_size=64,
        projection_dim=24,
        init_codebook=codebook,
    )
    return randomised(getattr(t, kind)(config))


def bridgetower(kind: str):
    text = {**STACK, "num_hidden_layers": 4, "vocab_size": WORDS, "max_position_embeddings": 22, "pad_token_id": 1}
    vision = {"hidden_size": 64, "num_hidden_layers": 4, "patch_size": 16, "image_size": 32}
    outer = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "contrastive_hidden_size": 24}
    config = t.BridgeTowerConfig(text_config=text, vision_config=vision, logit_scale_init_value=2.6592, **outer)
    return randomised(getattr(t, kind)(config))


def ours(run, ids):
    """(system, pictures, texts) of an imported run."""
    system = tuwen.load(run).system
    language = torch.zeros(len(ids), dtype=torch.int64)
    return system, system.encode_images(Images(PIXELS)), system.encode_texts(Texts(ids, REAL, language))


def equal_runs(first, second) -> None:
    a, b = (tensors_of(run / "weights.safetensors") for run in (first, second))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["FlavaModel", "FlavaForPreTraining", "with codebook"])
@torch.no_grad()
def test_flava(kind, tmp_path):
    model = flava("FlavaModel" if kind == "FlavaModel" else "FlavaForPreTraining", kind == "with codebook")
    run = tmp_path / "run"
    report = import_model(str(saved(model, tmp_path / "theirs")), run)
    assert all(report.unexpected.values())
    system, images, texts = ours(run, IDS)
    inner = model if kind == "FlavaModel" else model.flava
    asked = {"input_ids": IDS, "pixel_values": PIXELS, "attention_mask": REAL.long(), "output_hidden_states": True}
    want = inner(**asked)
    fused = system.fuse([images], texts)
    torch.testing.assert_close(fused.states[fused.mask], want.multimodal_embeddings[fused.mask], **CLOSE)
    pooled = F.normalize(inner.image_projection(want.image_embeddings[:, 0]), dim=-1)
    torch.testing.assert_close(images.pooled, pooled, **CLOSE)
    if kind == "FlavaModel":
        return
    head = model.itm_head(want.multimodal_embeddings)
    torch.testing.assert_close(system.match(images, texts)[:, 0], head[:, 1] - head[:, 0], **CLOSE)
    if kind == "with codebook":
        whole = torch.rand(2, 3, 32, 32)
        assert torch.equal(
            system.codes.codes(whole), model.image_codebook.get_codebook_indices(0.8 * whole + 0.1).view(2, 4, 4)
        )
    assert export_model(run, tmp_path / "out") == "FlavaForPreTraining"
    again = t.FlavaForPreTraining.from_pretrained(tmp_path / "out").eval()
    found = again.flava(**asked)
    torch.testing.assert_close(found.multimodal_embeddings[fused.mask], want.multimodal_embeddings[fused.mask], **CLOSE)
    torch.testing.assert_close(again.itm_head(found.multimodal_embeddings), head, **CLOSE)
    import_model(str(tmp_path / "out"), tmp_path / "run2")
    equal_runs(run, tmp_path / "run2")


KINDS = ["Model", "ForMaskedLM", "ForImageAndTextRetrieval", "ForContrastiveLearning"]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_bridgetower(kind, tmp_path):
    ids = IDS.masked_fill(~REAL, 1)  # RoBERTa's padding
    model = bridgetower(f"BridgeTower{kind}")
    run = tmp_path / "run"
    report = import_model(str(saved(model, tmp_path / "theirs", roberta=True)), run)
    assert all(report.unexpected.values())
    system, images, texts = ours(run, ids)
    asked = {"input_ids": ids, "pixel_values": PIXELS, "attention_mask": REAL.long()}
    inner = model if kind == "Model" else model.bridgetower
    torch.testing.assert_close(system.fuse([images], texts).pooled, inner(**asked).pooler_output, **CLOSE)
    assert (images.pooled is not None) == (kind == "ForContrastiveLearning")
    if kind == "ForContrastiveLearning":
        want = model(**asked)
        torch.testing.assert_close(images.pooled, want.image_embeds, **CLOSE)
        torch.testing.assert_close(texts.pooled, want.text_embeds, **CLOSE)
        torch.testing.assert_close(system.temperature, (-model.logit_scale).exp())
    if kind == "ForImageAndTextRetrieval":
        logits = model(**asked).logits
        torch.testing.assert_close(system.match(images, texts)[:, 0], logits[:, 1] - logits[:, 0], **CLOSE)
    if kind == "ForMaskedLM":
        words, _ = system.fused(images, texts)
        logits = model(**asked).logits  # large ones: 1e-5 of the greatest
        atol = 1e-5 * float(logits.abs().max())
        torch.testing.assert_close(system.word_logits(words)[REAL], logits[REAL], rtol=0, atol=atol)
    export_model(run, tmp_path / "out")
    again = type(model).from_pretrained(tmp_path / "out").eval()
    inner = again if kind == "Model" else again.bridgetower
    torch.testing.assert_close(inner(**asked).pooler_output, system.fuse([images], texts).pooled, **CLOSE)
    if kind == "ForContrastiveLearning":
        torch.testing.assert_close(again(**asked).image_embeds, images.pooled, rtol=0, atol=1e-4)
    import_model(str(tmp_path / "out"), tmp_path / "run2")
    if kind == "ForContrastiveLearning":
        equal_runs(run, tmp_path / "run2")


def test_a_padding_of_another_id_keeps_its_positions(tmp_path):
    """A run of ours pads with 0, RoBERTa with 1: positions count from behind whichever it is."""
    source = saved(bridgetower("BridgeTowerModel"), tmp_path / "theirs", roberta=True)
    settings = json.loads((source / "config.json").read_text())
    settings["text_config"] |= {"pad_token_id": 0}
    (source / "config.json").write_text(json.dumps(settings))
    write_tokenizer(source)
    import_model(str(source), tmp_path / "run")
    model = t.BridgeTowerModel.from_pretrained(source).eval()
    system, images, texts = ours(tmp_path / "run", IDS)
    with torch.no_grad():
        want = model(input_ids=IDS, pixel_values=PIXELS, attention_mask=REAL.long()).pooler_output
        torch.testing.assert_close(system.fuse([images], texts).pooled, want, **CLOSE)
        export_model(tmp_path / "run", tmp_path / "out")
        again = t.BridgeTowerModel.from_pretrained(tmp_path / "out").eval()
        torch.testing.assert_close(
            again(input_ids=IDS, pixel_values=PIXELS, attention_mask=REAL.long()).pooler_output, want, **CLOSE
        )


def test_what_the_architecture_lacks_is_refused(tmp_path):
    source = saved(bridgetower("BridgeTowerModel"), tmp_path / "theirs", roberta=True)
    settings = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(settings | {"link_tower_type": "interpolate"}))
    with pytest.raises(UserError, match="only link_tower_type add"):
        import_model(str(source), tmp_path / "run")


# ---- classification heads on imported models. transformers has none for either: they are the cards' (section 6), built
# here of torch's own layers on transformers' outputs


def bridgetower_head(inputs: int, hidden: int, classes: int) -> nn.Sequential:
    """`vqa_classifier`, `snli_classifier` and `nlvr2_classifier` of microsoft/BridgeTower, without dropout."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, classes))


def flava_head(inputs: int, hidden: int, classes: int) -> nn.Sequential:
    """The classifier of facebookresearch/multimodal, without dropout."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def same_head(system, task, classes: int, theirs: nn.Sequential) -> None:
    """Attaches our head for a task, with their weights, layer by layer."""
    head = head_of(system, task, classes, "target")
    system.attach(head)
    randomised(theirs)
    mine = [layer for layer in head.layers if list(layer.parameters())]
    for layer, other in zip(mine, [layer for layer in theirs if list(layer.parameters())], strict=True):
        layer.load_state_dict(other.state_dict())
    head.begin(system)
    system.eval()


TASKS = {
    "two_pictures": TwoPictures(TwoPictures.Config("two_pictures", labels=("true", "false"), pictures=2)),
    "vqa": VQA(VQA.Config("vqa", answers=("a", "b", "c", "d"))),
    "entailment": Entailment(Entailment.Config("entailment", labels=("yes", "no", "maybe"))),
}


@pytest.mark.parametrize(("task", "classes"), [("vqa", 4), ("entailment", 3)])
@torch.no_grad()
def test_flava_s_classes_are_told_from_transformers_joint_states(task, classes, tmp_path):
    model = flava("FlavaForPreTraining")
    import_model(str(saved(model, tmp_path / "theirs")), tmp_path / "run")
    system, images, texts = ours(tmp_path / "run", IDS)
    theirs = flava_head(64, 128, classes)
    same_head(system, TASKS[task], classes, theirs)
    asked = {"input_ids": IDS, "pixel_values": PIXELS, "attention_mask": REAL.long(), "output_hidden_states": True}
    want = theirs(model.flava(**asked).multimodal_embeddings[:, 0])
    torch.testing.assert_close(system.head.logits(system, [images], texts), want, **CLOSE)


def type_rows(model, rows: int) -> None:
    """As many kinds of picture as NLVR2 needs: a further one begins as the first picture's (card, section 6)."""
    old = model.token_type_embeddings.weight
    model.token_type_embeddings = nn.Embedding(rows, old.shape[1])
    model.token_type_embeddings.weight.copy_(torch.cat([old, old[1:].expand(rows - 2, -1)]))


@pytest.mark.parametrize(("task", "classes"), [("vqa", 4), ("entailment", 3), ("two_pictures", 2)])
@torch.no_grad()
def test_bridgetower_s_classes_are_told_from_transformers_pooled_states(task, classes, tmp_path):
    model = bridgetower("BridgeTowerForImageAndTextRetrieval")
    import_model(str(saved(model, tmp_path / "theirs", roberta=True)), tmp_path / "run")
    ids = IDS.masked_fill(~REAL, 1)  # RoBERTa's padding
    system, images, texts = ours(tmp_path / "run", ids)
    asked = {"input_ids": ids, "attention_mask": REAL.long()}
    inner, pictures, seen = model.bridgetower, [PIXELS], [images]
    if task == "two_pictures":
        pictures.append(PIXELS.flip(0))
        seen.append(system.encode_images(Images(PIXELS.flip(0))))
    width = 128 * len(pictures)
    theirs = bridgetower_head(width, 192 if task == "two_pictures" else 256, classes)
    same_head(system, TASKS[task], classes, theirs)
    type_rows(inner, 3)
    pooled: list[Tensor] = [
        inner(**asked, pixel_values=pixels, image_token_type_idx=1 + k).pooler_output
        for k, pixels in enumerate(pictures)
    ]
    want = theirs(torch.cat(pooled, 1))
    torch.testing.assert_close(system.head.logits(system, seen, texts), want, **CLOSE)
    if task == "two_pictures":  # the second picture's kind is learnt apart
        changed = inner.token_type_embeddings.weight[2] + 1
        inner.token_type_embeddings.weight[2].copy_(changed)
        system.fusion.types.weight[2].copy_(changed)
        pooled[1] = inner(**asked, pixel_values=pictures[1], image_token_type_idx=2).pooler_output
        want = theirs(torch.cat(pooled, 1))
        torch.testing.assert_close(system.head.logits(system, seen, texts), want, **CLOSE)
