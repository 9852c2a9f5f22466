"""ERNIE-UniX2: one encoder-decoder over pictures and several languages, for understanding and generation."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from tuwen.data import draws
from tuwen.data.batch import Batch, Images, Texts
from tuwen.data.gather import gather
from tuwen.data.text import Vocabulary, mask_words
from tuwen.errors import UserError
from tuwen.nn.decoder import CausalDecoder, Speaker
from tuwen.nn.encoded import Encoded
from tuwen.nn.fusion import WordHead
from tuwen.nn.generation import Generated, Generation, generate
from tuwen.nn.sizes import CrossEncoderConfig, ImageTowerConfig, TextTowerConfig, size
from tuwen.nn.temperature import Temperature
from tuwen.nn.towers import DualEncoder
from tuwen.nn.transformer import Stack
from tuwen.objectives.gather import global_contrast
from tuwen.objectives.masked_language import masked_language, masked_positions
from tuwen.objectives.next_word import next_word
from tuwen.systems.survey import Axes
from tuwen.systems.system import Fused, Losses, Needs, Paper, Progress, System


@dataclass(frozen=True)
class Streams:
    """How often a step is given to each stream, as weights [D: ours]; those the corpus cannot fill are left out.

    texts: texts of one language. parallel: texts in two. pairs: pictures with a text. both: pictures with texts in two
    languages.
    """

    texts: float = 0.1
    parallel: float = 0.3
    pairs: float = 0.3
    both: float = 0.3

    def __post_init__(self):
        if min(vars(self).values()) < 0 or not sum(vars(self).values()):
            raise ValueError(f"streams must be weights of 0 or more, not all 0: {vars(self)}")


@dataclass(frozen=True)
class ERNIEUniX2Config:
    """The card's "as described" losses; its open questions are switches.

    masked: "encoder" tells masked words by a head on the text encoder; "decoder" restores the whole text instead.
    masked_captions: masked words of captions told from the fused picture and text too ("strong" of the card).
    translation: parallel texts are also translated without a picture.
    languages: size of the decoder's table of language tags.
    fusion.layers: 0 lets the decoder read the towers' outputs side by side.
    """

    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    fusion: CrossEncoderConfig = field(default_factory=CrossEncoderConfig)
    decoder: CrossEncoderConfig = field(default_factory=CrossEncoderConfig)
    embed: int = 256
    nested: tuple[int, ...] = ()  # widths of prefixes that are to be vectors of their own, see `nested_mean`
    streams: Streams = field(default_factory=Streams)
    masked: str = "encoder"
    masked_captions: bool = False
    translation: bool = True
    mask_share: float = 0.15
    label_smoothing: float = 0.1
    languages: int = 128

    def __post_init__(self):
        if self.masked not in ("encoder", "decoder"):
            raise ValueError(f"masked must be encoder or decoder, got {self.masked!r}")
        if not self.text.width == self.fusion.width == self.decoder.width:
            raise ValueError("text.width, fusion.width and decoder.width must be equal: they share word embeddings")

    @classmethod
    def sized(cls, name: str) -> "ERNIEUniX2Config":
        towers = size(name)
        return towers.fill(cls, decoder=towers.fusion)


class ERNIEUniX2(System):
    """Contrast and language modelling over pictures and several languages (Shan et al. 2022). RECONSTRUCTED.

    Only the abstract could be read. From it [A]: an encoder-decoder, contrastive learning and language modelling, texts
    of several languages and image-text data. From notes by others, unconfirmed [B]: the list of objectives. Sizes,
    equations, streams, masking and settings are ours [D] or from CCLM's code [C] (card, sections 3 to 5). A step draws
    one stream for the whole global batch; its losses are summed:

    - texts: MLM. parallel: TTC, TLM, MT [D]. pairs: ITC, ITG. both: ITC (with each text), TTC, MMT.

    ITC and TTC are contrasts of first-token vectors before fusion, one text projection for every language; rows of one
    picture or of equal texts are positives. In TLM the second text's positions start anew (Conneau and Lample 2019)
    [D], so that two texts of full length fit. The decoder is told its language by a tag before the words [D]. Where the
    corpus has a column "ambiguous" (the texts with words that the picture alone decides), MT and MMT translate those.
    """

    paper = Paper(
        title="ERNIE-UniX2: A Unified Cross-lingual Cross-modal Framework for Understanding and Generation",
        venue="arXiv 2022",
        arxiv="2211.04861",
        code="none",
        idea="one encoder-decoder learns contrast and language modelling over pictures and several languages",
        fidelity="reconstructed",
        image_encoder="ViT",
        text_encoder="multilingual BERT (published: XLM-R)",
        interaction="cosine, then self-attention over picture and text together",
        objectives=(
            "image-text and text-text contrast",
            "masked and translation language modelling",
            "captioning",
            "multimodal translation",
        ),
        decoder="causal, over the fused states",
        axes=Axes(
            text="roberta",
            vision=("patch",),
            interaction=("dot_product", "stacked"),
            objectives=("cmcl", "text_contrast", "mlm", "tlm", "ic", "mmt"),
            data=("multilingual_pairs", "parallel_texts"),
            decoder="seq2seq",
            parts=("parallel",),
        ),
    )
    Config = ERNIEUniX2Config

    def __init__(self, config: ERNIEUniX2Config, vocabulary: Vocabulary):
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.encoders = DualEncoder(config.image, config.text, config.embed, vocabulary)
        width = config.fusion.width
        self.image_to_fusion = nn.Linear(config.image.width, width)
        self.types = nn.Parameter(torch.zeros(2, width))  # picture, text
        self.fusion = Stack.of(config.fusion, "post")
        self.decoder = CausalDecoder(config.decoder, width, vocabulary.size, config.text.length, config.languages)
        self.word_head = WordHead(width, vocabulary.size)
        self.temperature = Temperature()

    @classmethod
    def needs(cls, config: ERNIEUniX2Config) -> Needs:
        return Needs(languages=2 if config.streams.parallel or config.streams.both else 1)

    def stream(self, batch: Batch, progress: Progress) -> str:
        """The step's stream, drawn by (seed, step) among those the batch can fill.

        Raises:
            UserError: if it can fill none that has a weight.
        """
        pictures, parallel = batch.images is not None, "parallel" in batch.columns
        filled = {"texts": True, "parallel": parallel, "pairs": pictures, "both": pictures and parallel}
        weights = {name: getattr(self.config.streams, name) * can for name, can in filled.items()}
        left = float(draws.uniform(torch.tensor([progress.step]), 1, progress.seed, "stream")) * sum(weights.values())
        if not sum(weights.values()):
            can = ", ".join(name for name in filled if filled[name])
            raise UserError(f"the corpus can fill the streams {can} alone; give one of them a weight in model.streams")
        for name, weight in weights.items():
            if left < weight:
                return name
            left -= weight
        return max(weights, key=lambda name: weights[name])  # rounding at the very edge

    def encode(self, batch: Batch, progress: Progress) -> dict[str, Encoded]:
        """What the step's stream reads, and nothing else."""
        stream, encoded = self.stream(batch, progress), {}
        if stream in ("pairs", "both"):
            encoded["images"] = self.encode_images(batch.images)
        if stream != "texts":
            encoded["texts"] = self.encode_texts(batch.texts)
        if stream in ("parallel", "both"):
            encoded["parallel"] = self.encode_texts(batch.columns["parallel"])
        return encoded

    def losses(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        images, texts, parallel = (encoded.get(name) for name in ("images", "texts", "parallel"))
        stream, other = self.stream(batch, progress), batch.columns.get("parallel")
        terms: dict[str, Tensor] = {}
        if images is not None:
            terms["image_text_contrast"] = global_contrast(
                images.pooled, texts.pooled, batch.same(), self.temperature, self.config.nested
            )
            if parallel is not None:
                same = replace(batch, text_id=identity(other)).same()
                again = global_contrast(images.pooled, parallel.pooled, same, self.temperature, self.config.nested)
                terms["image_text_contrast"] = (terms["image_text_contrast"] + again) / 2
        if parallel is not None:
            terms["text_text_contrast"] = self.text_text(texts, parallel, batch, identity(other))
        if stream == "texts":
            terms["masked_words"] = self.masked_words(batch.texts, batch, progress)
        elif stream == "parallel":
            terms["masked_pairs"] = self.masked_pairs(batch.texts, other, batch, progress)
            if self.config.translation:
                terms["translation"] = self.next_word_loss(other, None, self.source(texts, batch))
        elif stream == "pairs":
            terms["captions"] = self.next_word_loss(batch.texts, images, None)
            if self.config.masked_captions:
                terms["masked_captions"] = self.masked_words(batch.texts, batch, progress, images)
        else:
            terms["translation_with_picture"] = self.next_word_loss(other, images, self.source(texts, batch))
        return Losses(terms, metrics={"temperature": self.temperature.detach()})

    def retrieval(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        """Section 6 scores by the projections: their contrast alone."""
        contrast = global_contrast(
            encoded["images"].pooled, encoded["texts"].pooled, batch.same(), self.temperature, self.config.nested
        )
        return Losses({"image_text_contrast": contrast}, metrics={"temperature": self.temperature.detach()})

    # ---- contrast, before fusion

    def text_text(self, texts: Encoded, parallel: Encoded, batch: Batch, parallel_id: Tensor) -> Tensor:
        """TTC: a text against the texts of the other language; one picture or equal texts on either side are one."""
        same = batch.same() | (parallel_id[:, None] == gather(parallel_id))
        return global_contrast(texts.pooled, parallel.pooled, same, self.temperature)

    # ---- masked words

    def hide(self, texts: Texts, batch: Batch, progress: Progress, purpose: str) -> tuple[Texts, Tensor]:
        """BERT's masking, never of [SEP], and of at least one word of every text that has one."""
        drawn = progress.uniform(batch, 3 * texts.ids.shape[1], purpose)
        return mask_words(texts, self.vocabulary, drawn, self.config.mask_share, sep=False, some=True)

    def masked_words(self, texts: Texts, batch: Batch, progress: Progress, images: Encoded | None = None) -> Tensor:
        """MLM on the text encoder's states, or with a picture on the fused ones; or the decoder restores the text."""
        masked, labels = self.hide(texts, batch, progress, "mask")
        encoded = self.encode_texts(masked)
        if images is None and self.config.masked == "decoder":
            return self.next_word_loss(texts, None, encoded)
        states = encoded.states["last"] if images is None else self.fuse([images], encoded).states
        return self.word_loss(states, labels)

    def masked_pairs(self, texts: Texts, parallel: Texts, batch: Batch, progress: Progress) -> Tensor:
        """TLM: both texts in one row, each partly masked, full attention across: [CLS] a [SEP] [SEP] b [SEP]."""
        first, labels = self.hide(texts, batch, progress, "mask")
        second, other_labels = self.hide(parallel, batch, progress, "mask parallel")
        ids = torch.cat([first.ids, second.ids.clone()], 1)
        ids[:, first.ids.shape[1]] = self.vocabulary.sep
        places = [torch.arange(part.ids.shape[1], device=ids.device) for part in (first, second)]
        states = self.encoders.text(ids, torch.cat([first.mask, second.mask], 1), places=torch.cat(places))
        return self.word_loss(states, torch.cat([labels, other_labels], 1))

    def word_loss(self, states: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy at the labelled positions [B, L] alone of states [B, L, W]."""
        index, words = masked_positions(labels)
        return masked_language(self.word_head(states.flatten(0, 1)[index], self.encoders.text.words.weight), words)

    # ---- the decoder

    def source(self, texts: Encoded, batch: Batch) -> Encoded:
        """What is translated: the texts, or their ambiguous form."""
        ambiguous = batch.columns.get("ambiguous")
        return texts if ambiguous is None else self.encode_texts(ambiguous)

    def context(self, images: Encoded | None, texts: Encoded | None) -> tuple[Tensor, Tensor]:
        """What the decoder reads: E_f's states [B, S, W] of pictures, texts or both in this order, and their mask."""
        states, masks = [], []
        if images is not None:
            states.append(self.image_to_fusion(images.states["last"]) + self.types[0])
            masks.append(torch.ones(states[0].shape[:2], dtype=torch.bool, device=states[0].device))
        if texts is not None:
            states.append(texts.states["last"] + self.types[1])
            masks.append(texts.state_mask)
        joined = torch.cat(masks, 1)
        return self.fusion(torch.cat(states, 1), joined), joined

    def next_word_loss(self, texts: Texts, images: Encoded | None, source: Encoded | None) -> Tensor:
        """-log p of the texts' words and ends, each given those before and the memory (ITG, MT, MMT)."""
        words = self.encoders.text.words.weight
        states, following = self.decoder.taught(texts, *self.context(images, source), words)
        return next_word(self.decoder.logits(states, words), following, self.config.label_smoothing)

    # ---- use

    def encode_images(self, images: Images) -> Encoded:
        return self.encoders.encode_images(images)

    def encode_texts(self, texts: Texts) -> Encoded:
        return self.encoders.encode_texts(texts.ids, texts.mask)

    def fuse(self, images: Sequence[Encoded], texts: Encoded) -> Fused:
        """The text's states after E_f over all pictures and the text; pooled is the first token's."""
        last = torch.cat([image.states["last"] for image in images], 1)
        states, _ = self.context(Encoded(states={"last": last}), texts)
        words, patches = slice(last.shape[1], states.shape[1]), slice(0, last.shape[1])
        states = states[:, words]
        return Fused(states[:, 0], states, texts.state_mask, words, patches)

    def adapt(self, task: str, classes: int = 3, pictures: int = 1) -> nn.Module | None:
        """A linear head [D] on `fuse(...).pooled`, one for every language: "vqa" (GQA's 1,842 English answers, for
        xGQA) or "entailment" (XVNLI's three classes)."""
        return nn.Linear(self.config.fusion.width, classes) if task in ("vqa", "entailment") else None

    def speaker(self, images: Encoded | None, prompt: Texts | None, language: Tensor, cached: bool = True) -> Speaker:
        """The decoder before its first word, on pictures, texts to translate, or both."""
        source = None if prompt is None else self.encode_texts(prompt)
        words = self.encoders.text.words.weight
        return Speaker(self.decoder, words, language, *self.context(images, source), cached)

    def generate(
        self,
        images: Encoded | None,
        prompt: Texts | None,
        language: Tensor,
        how: Generation,
        keys: Tensor | None = None,
    ) -> Generated:
        """Captions of pictures; translations of prompts, with the pictures or without."""
        return generate(self.speaker(images, prompt, language), self.vocabulary, how, keys)

    def likelihood(self, images: Encoded | None, prompt: Texts | None, answers: Texts) -> Tensor:
        source = None if prompt is None else self.encode_texts(prompt)
        return self.decoder.likelihood(answers, *self.context(images, source), self.encoders.text.words.weight)

    def caption_loss(self, images: Encoded | None, prompt: Texts | None, texts: Texts) -> Tensor:
        """With the label smoothing of all its decoder's losses (card, section 5)."""
        return self.next_word_loss(texts, images, None if prompt is None else self.encode_texts(prompt))


def identity(texts: Texts) -> Tensor:
    """[S] int64 of what token sequences say: equal tokens, equal number, whatever the padding."""
    place = torch.arange(texts.ids.shape[1], device=texts.ids.device)
    return (draws.mix(texts.ids ^ draws.mix(place)) * texts.mask).sum(1)
