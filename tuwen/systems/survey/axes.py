"""What a vision-language system is made of, in a closed vocabulary an axis (the survey's section 3 to 5).

The survey's axes are text encoder, vision encoder, interaction, objectives, data and downstream tasks. Decoder and
parts (codebook, teacher, ...) are added here, since objectives require them; which tasks a system can do is told from
its code (`tuwen.tasks`). Keys are the survey's; those marked [ours] are not in it.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

TEXT_ENCODERS: dict[str, str] = {
    "none": "no text is read [ours]",
    "bert": "bidirectional transformer, post-norm",
    "roberta": "BERT without next-sentence loss",
    "gpt2": "causal transformer, pre-norm",
    "t5/bart": "encoder of an encoder-decoder",
    "unilm": "one transformer, bidirectional or causal by its mask",
    "vit": "bidirectional transformer, pre-norm, as a ViT's",
    "transformer": "plain transformer",
}

VISION_ENCODERS: dict[str, str] = {
    "region": "features of detected objects with their boxes",
    "grid": "a convolutional feature map, flattened",
    "patch": "linear patches or a ViT",
}

# key -> (what it gives, how); "dual": vectors a side, scored without a look at the pair; "fusion": joint states
INTERACTIONS: dict[str, tuple[frozenset[str], str]] = {
    "none": (frozenset(), "one modality alone [ours]"),
    "dot_product": (frozenset({"dual"}), "two towers, similarity of pooled vectors"),
    "shallow_attention": (frozenset({"dual"}), "two towers under a shallow attention"),
    "shallow_fusion": (frozenset({"dual", "fusion"}), "two towers, an MLP over the vectors of a pair [ours]"),
    "token_wise": (frozenset({"dual"}), "two towers, similarity of tokens (late interaction) [ours]"),
    "single_stream": (frozenset({"fusion"}), "self-attention over both sequences, one after the other"),
    "dual_stream": (frozenset({"fusion"}), "cross-attention: queries of one side, keys and values of the other"),
    "stacked": (frozenset({"dual", "fusion"}), "two towers, then a fusion encoder over their states"),
    "shared_experts": (frozenset({"dual", "fusion"}), "one backbone with an expert a modality"),
}

DECODERS: dict[str, str] = {
    "none": "none",
    "causal": "left to right, by a causal mask",
    "seq2seq": "left to right, with cross-attention over an encoder",
    "pixels": "reconstructs pictures alone (masked autoencoder, VAE) [ours]",
}

PARTS: dict[str, str] = {
    "codebook": "pictures as a grid of discrete codes",
    "dictionary": "a visual dictionary learnt along",
    "teacher": "a momentum copy or another frozen model",
    "queue": "features of earlier batches",
    "concepts": "object tags or concept words beside the text",
    "phrases": "phrases or entities as spans of the text",
    "sentences": "a text as its sentences",
    "graph": "a graph over entities",
    "parallel": "texts in two languages a picture",
    "locator": "boxes found for a text",
    "sampler": "an order of batches made from features",
}


@dataclass(frozen=True)
class Objective:
    """A pre-training task: what is learned, and what a system must have for it (an empty set: pairs alone).

    requires: each entry is one of "dual", "fusion", "decoder", a key of VISION_ENCODERS, INTERACTIONS or PARTS, or
        "a|b" for either.
    """

    what: str
    requires: frozenset[str] = frozenset()


def _objective(what: str, *requires: str) -> Objective:
    return Objective(what, frozenset(requires))


OBJECTIVES: dict[str, Objective] = {
    "mlm": _objective("masked words, given the rest of the text and (where fused) the picture"),
    "mrc": _objective("classes of masked regions", "region", "fusion"),
    "mrfr": _objective("features of masked regions", "region", "fusion"),
    "mfr": _objective("features of masked patches, regressed", "region|patch", "fusion"),
    "mvm": _objective("dictionary entries of masked grid cells", "grid", "dictionary", "fusion"),
    "itm": _objective("does this text belong to this picture", "fusion"),
    "cmcl": _objective("contrast of pictures and texts"),
    "prefix_lm": _objective("the rest of a text, word by word, from its beginning and the picture", "decoder"),
    "seq2seq_lm": _objective("masked pieces, word by word", "decoder"),
    "wra": _objective("words aligned with regions or patches by optimal transport", "region|patch", "fusion"),
    "vqa": _objective("answers to questions, as pre-training", "fusion|decoder"),
    "vg_task": _objective("the region a phrase means", "region"),
    "gc": _objective("what a given region shows", "region", "decoder"),
    "ic": _objective("captions, word by word", "decoder"),
    "dae": _objective("a text from a damaged copy", "decoder"),
    "cl": _objective("contrast within one modality"),
    "mmm": _objective("masked words and codes of masked patches on joint states (FLAVA)", "fusion", "codebook"),
    "mim": _objective("codes of masked patches", "patch", "codebook"),
    # [ours]: of the systems here that the survey does not list
    "mae": _objective("pixels of hidden patches (masked autoencoding)", "patch", "decoder"),
    "vae": _objective("the picture from its own codes", "decoder", "codebook"),
    "fine_contrast": _objective("contrast by a similarity of tokens", "token_wise|region|patch|grid"),
    "distillation": _objective("targets or features of a teacher", "teacher"),
    "xmm": _objective("masked patches given the text, masked words given the picture (SIMLA)", "fusion"),
    "psl": _objective("pseudo-labels of concepts (SIMLA)", "concepts|teacher"),
    "tlm": _objective("masked words of two languages at once", "parallel"),
    "text_contrast": _objective("contrast of texts of one meaning"),
    "mmt": _objective("a translation, word by word, given the picture", "decoder", "parallel"),
    "mcr": _objective("masked concepts from what stands beside them", "concepts|phrases"),
    "vsc": _objective("contrast of pictures and texts with their concepts", "concepts|phrases"),
    "wpg": _objective("phrases grounded without boxes", "phrases", "fusion"),
    "sentence_contrast": _objective("contrast of pictures with sentences", "sentences"),
    "node_ranking": _objective("neighbours in the entity graph rank above others", "graph"),
    "subgraph_ranking": _objective("whole neighbourhoods rank above others", "graph"),
    "knowledge": _objective("entities of a knowledge graph from picture and text", "graph"),
    "concept_lm": _objective("captions from pictures and concepts", "decoder", "concepts"),
    "location": _objective("boxes for a text, without gold boxes", "locator"),
}


@dataclass(frozen=True)
class Dataset:
    """A pre-training corpus: images and pairs where known, in thousands."""

    what: str
    images: float | None = None
    pairs: float | None = None


DATASETS: dict[str, Dataset] = {
    "coco": Dataset("MS COCO captions", images=328.124),
    "vg_data": Dataset("Visual Genome", images=108.077),
    "cc3m": Dataset("Conceptual Captions", pairs=3100),
    "sbu": Dataset("SBU captions", pairs=1000),
    "laion400m": Dataset("LAION", pairs=400_000),
    "redcaps": Dataset("RedCaps", pairs=12_000),
    "flickr30k": Dataset("Flickr30k", images=31.783),
    "vqa_data": Dataset("VQA"),
    "c4": Dataset("C4, texts alone"),
    "align": Dataset("ALIGN's web pairs", pairs=1_800_000),
    "ruc_cas_wenlan": Dataset("WenLan's web pairs"),
    "private": Dataset("the authors' own pairs"),
    # [ours]
    "cc12m": Dataset("Conceptual 12M", pairs=12_000),
    "pmd": Dataset("public multimodal datasets (FLAVA)", images=68_000, pairs=70_000),
    "imagenet": Dataset("ImageNet-1k, pictures alone", images=1281.167),
    "ccnews_books": Dataset("CCNews and BookCorpus, texts alone"),
    "yfcc26m": Dataset("a filtered part of YFCC100M", pairs=26_000),
    "wukong": Dataset("Wukong", pairs=100_000),
    "product1m": Dataset("Product1M, cosmetics of a shop"),
    "zero": Dataset("Zero, pairs by clicks", pairs=23_000),
    "parallel_texts": Dataset("sentence pairs of several languages"),
    "multilingual_pairs": Dataset("pairs in several languages"),
    "m5product": Dataset("products of a shop"),
    "shop": Dataset("products of a shop, the authors' own"),
    "mimic_cxr": Dataset("chest X-rays with reports", images=377.11),
    "roco": Dataset("figures of medical papers", pairs=81.8),
    "medicat": Dataset("figures of medical papers", pairs=217.06),
    "unknown": Dataset("not told in what could be read"),
}


@dataclass(frozen=True)
class Axes:
    """One system on every axis, by keys of the vocabularies above.

    Raises:
        ValueError: an unknown key (the valid ones are listed), or an objective that lacks what it requires.
    """

    text: str
    vision: tuple[str, ...]
    interaction: tuple[str, ...]
    objectives: tuple[str, ...]
    data: tuple[str, ...]
    decoder: str = "none"
    parts: tuple[str, ...] = ()

    def __post_init__(self):
        known: tuple[tuple[str, tuple[str, ...], Mapping], ...] = (
            ("text encoder", (self.text,), TEXT_ENCODERS),
            ("vision encoder", self.vision, VISION_ENCODERS),
            ("interaction", self.interaction, INTERACTIONS),
            ("decoder", (self.decoder,), DECODERS),
            ("part", self.parts, PARTS),
            ("dataset", self.data, DATASETS),
            ("objective", self.objectives, OBJECTIVES),
        )
        for axis, keys, vocabulary in known:
            for key in keys:
                _check(axis, key, vocabulary)
        for key in self.objectives:
            missing = lacking(OBJECTIVES[key].requires, self.provides)
            if missing:
                raise ValueError(f"objective {key} ({OBJECTIVES[key].what}) requires {missing}")

    @property
    def provides(self) -> frozenset[str]:
        """What objectives may require of it."""
        given = {*self.vision, *self.interaction, *self.parts}
        for key in self.interaction:
            given |= INTERACTIONS[key][0]
        if self.decoder != "none":
            given.add("decoder")
        return frozenset(given)


def lacking(requires: frozenset[str], given: frozenset[str]) -> str:
    """What is required and not given, in words; empty where nothing is."""
    missing = [need for need in sorted(requires) if not given & set(need.split("|"))]
    return ", ".join(" or ".join(need.split("|")) for need in missing)


def _check(axis: str, key: str, vocabulary: Mapping) -> None:
    if key not in vocabulary:
        near = difflib.get_close_matches(key, vocabulary, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"no {axis} called {key!r}{hint}; there are {', '.join(vocabulary)}")
