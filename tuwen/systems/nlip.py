"""NLIP: pairs that are likely wrong pull less, and a decoder that knows what a picture shows completes captions."""

from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, nn

from tuwen.data.batch import Batch, Images, Texts
from tuwen.data.text import Vocabulary
from tuwen.nn.backbones import normalised
from tuwen.nn.decoder import CausalDecoder, PatchDecoder, Speaker
from tuwen.nn.encoded import Encoded
from tuwen.nn.generation import Generated, Generation, generate
from tuwen.nn.patch_masking import hide_random
from tuwen.nn.sizes import CrossEncoderConfig, ImageTowerConfig, TextTowerConfig, size
from tuwen.nn.temperature import Temperature
from tuwen.nn.towers import DualEncoder, unit
from tuwen.objectives.gather import global_contrast
from tuwen.objectives.masked_pixels import masked_pixels
from tuwen.objectives.next_word import next_word
from tuwen.systems.survey import Axes
from tuwen.systems.system import Losses, Needs, Paper, Progress, System


@dataclass(frozen=True)
class NLIPConfig:
    """noise: whether the losses heed a table's noise of each text; off in the warm-up by which it is estimated.
    concepts: whether texts are read with names of what the picture shows (column "tags").

    softening: lambda, the share of a wholly noisy row's target that is spread over the batch; 0 is CLIP's contrast.
    concept_share: of rows that keep their names in training, so that use can do without.
    mask_ratio: of patches. captions, pixels: alpha and beta, weights of both losses.
    languages: size of the decoder's table of tags.
    """

    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    decoder: CrossEncoderConfig = field(default_factory=CrossEncoderConfig)
    painter: CrossEncoderConfig = field(default_factory=lambda: CrossEncoderConfig(512, 4, 8))
    embed: int = 256
    nested: tuple[int, ...] = ()  # widths of prefixes that are to be vectors of their own, see `nested_mean`
    noise: bool = True
    concepts: bool = True
    softening: float = 0.5
    concept_share: float = 0.5
    mask_ratio: float = 0.5
    captions: float = 1.0
    pixels: float = 1.0
    languages: int = 128

    def __post_init__(self):
        if self.text.width != self.decoder.width:
            raise ValueError("text.width and decoder.width must be equal: they share word embeddings")
        if not (0 <= self.mask_ratio < 1 and 0 <= self.softening <= 1 and 0 <= self.concept_share <= 1):
            raise ValueError("mask_ratio, softening and concept_share must lie between 0 and 1 (mask_ratio 1 excluded)")
        if min(self.captions, self.pixels) < 0:
            raise ValueError("captions and pixels are weights of losses, 0 or more")

    @classmethod
    def sized(cls, name: str) -> "NLIPConfig":
        """Small decoders of pixels for the sizes that train in seconds and minutes."""
        towers = size(name)
        small = {"tiny": CrossEncoderConfig(32, 1, 2), "demo": CrossEncoderConfig(64, 2, 4)}.get(name)
        others = {} if small is None else {"painter": small}
        return towers.fill(cls, decoder=towers.fusion, **others)


class NLIP(System):
    """Contrast that trusts a pair as far as it is likely right, captions told from picture and concepts, masked pixels.

    Huang et al., AAAI 2023. RECONSTRUCTED from abstract, figures and the methods it builds on (card, sections 3 and 4);
    no code was announced. [paper]: noise from the memorisation effect, contrast regularised by it, concepts beside the
    caption in T_e, a decoder that gets pictures and concepts for captions and no picture in the contrast, visible
    patches alone in V_e, an MAE decoder. All sizes, weights and the following are choices:

    - The target of row i is (1 - lambda eps_i) on its own and lambda eps_i / N on every column, both ways.
    - The caption's vector is the decoder's state at [SEP], which looks at T_e of caption and concepts alone.
    - The decoder that tells the caption looks at the picture's visible patches and at T_e of the concepts alone: the
      caption is never in its memory. A word of row i counts 1 - eps_i.
    - Concepts stand behind the caption in T_e, their positions start anew; a row keeps its own with a probability. In
      use there are none, but for captions, whose prompt they may be.
    - eps comes from a table beside the corpus (`tuwen data noise`), and is a constant. No teacher, no queue.

    Equal pictures or texts are positives. Retrieval scores by the vectors alone.
    """

    paper = Paper(
        title="NLIP: Noise-robust Language-Image Pre-training",
        venue="AAAI 2023",
        arxiv="2212.07086",
        code="none",
        idea="pairs that are likely wrong pull less; a decoder that knows the picture's concepts completes captions",
        fidelity="reconstructed",
        image_encoder="ViT over visible patches",
        text_encoder="BERT over caption and concepts, then a decoder",
        interaction="cosine",
        objectives=("noise-adaptive contrast", "captioning with concepts", "masked pixels"),
        decoder="causal, over picture and concepts",
        axes=Axes(
            text="t5/bart",
            vision=("patch",),
            interaction=("dot_product",),
            objectives=("cmcl", "concept_lm", "mae"),
            data=("yfcc26m",),
            decoder="seq2seq",
            parts=("concepts",),
        ),
    )
    Config = NLIPConfig
    training_only = ("painter",)
    translates = False

    def __init__(self, config: NLIPConfig, vocabulary: Vocabulary):
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.encoders = DualEncoder(config.image, config.text, config.embed, vocabulary)
        width = config.decoder.width
        self.image_to_decoder = nn.Linear(config.image.width, width)
        self.types = nn.Parameter(torch.zeros(2, width))  # picture, text
        self.decoder = CausalDecoder(config.decoder, width, vocabulary.size, config.text.length + 1, config.languages)
        side = config.image.side // config.image.patch
        self.grid = (side, side)
        self.painter = PatchDecoder(config.painter, config.image.width, self.grid, config.image.patch)
        self.temperature = Temperature()
        self.reads_tags = config.concepts

    @classmethod
    def needs(cls, config: NLIPConfig) -> Needs:
        return Needs(tags=config.concepts, columns=("noise",) if config.noise else ())

    # ---- the losses

    def masks(self, batch: Batch, progress: Progress) -> tuple[Tensor | None, Tensor | None]:
        """(kept [B, K] int64, hidden [B, N] bool); None, None where every patch is seen."""
        if not self.config.mask_ratio:
            return None, None
        draws = progress.uniform(batch, self.grid[0] * self.grid[1], "patches")
        return hide_random(draws, self.config.mask_ratio)

    def encode(self, batch: Batch, progress: Progress) -> dict[str, Encoded]:
        """What is drawn is drawn here: the losses find the masks in the pictures' states, and "concepts" as T_e's."""
        assert batch.images is not None
        assert batch.texts is not None
        (kept, hidden), concepts = self.masks(batch, progress), self.concepts(batch, progress)
        images = self.encoders.encode_images(batch.images, kept=kept)
        if kept is not None and hidden is not None:
            images = replace(images, states={**images.states, "kept": kept, "hidden": hidden})
        encoded = {"images": images, "texts": self.read(batch.texts, concepts)}
        return encoded | ({"concepts": self.named(concepts, len(batch))} if self.config.captions else {})

    def concepts(self, batch: Batch, progress: Progress) -> Texts | None:
        """Names of what each picture shows; of a row that is to do without, [CLS] alone. None: the batch has none."""
        names = batch.columns.get("tags") if self.config.concepts else None
        if not isinstance(names, Texts):
            return None
        stays = progress.uniform(batch, 1, "concepts") < self.config.concept_share
        first = torch.arange(names.mask.shape[1], device=names.mask.device) == 0
        return replace(names, mask=names.mask & (stays | first))

    def losses(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        images, noise = encoded["images"], self.noise(batch)
        terms = {"contrast": self.contrast(encoded, batch, noise)}
        if self.config.captions:
            captions = self.captions(images, encoded["concepts"], batch.texts, noise)
            terms["captions"] = self.config.captions * captions
        hidden = images.states.get("hidden")
        if self.config.pixels and hidden is not None:
            tower = self.encoders.image
            painted = self.painter(tower.grid(images.states["last"]), images.states["kept"])
            pixels = normalised(batch.images.pixels, tower.mean, tower.std)
            terms["masked_pixels"] = self.config.pixels * masked_pixels(
                painted, pixels, hidden, self.config.image.patch
            )
        metrics = {"temperature": self.temperature.detach()}
        return Losses(terms, metrics=metrics if noise is None else {**metrics, "noise": noise.mean()})

    def retrieval(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        """The contrast alone."""
        return Losses({"contrast": self.contrast(encoded, batch, None)})

    def noise(self, batch: Batch) -> Tensor | None:
        """[B] eps, how likely each row's text is wrong; no gradient."""
        return cast(Tensor, batch.columns["noise"]).detach() if self.config.noise else None

    def contrast(self, encoded: dict[str, Encoded], batch: Batch, noise: Tensor | None) -> Tensor:
        """Section 4.2: a row's target is spread as far as its text is likely wrong, both ways alike."""
        share = None if noise is None else self.config.softening * noise
        images, texts = encoded["images"].pooled, encoded["texts"].pooled
        assert images is not None
        assert texts is not None
        return global_contrast(images, texts, batch.same(), self.temperature, self.config.nested, share)

    def captions(self, images: Encoded, concepts: Encoded, texts: Texts, noise: Tensor | None) -> Tensor:
        """Section 4.3: -log p of every word given those before, picture and concepts; it counts as its text does."""
        words = self.words
        states, following = self.decoder.taught(texts, *self.context(images, concepts), words)
        rows = torch.nonzero(texts.mask[:, 1:])[:, 0]
        weights = None if noise is None else (1 - noise)[rows]
        return next_word(self.decoder.logits(states, words), following, weights=weights)

    # ---- texts: T_e, then the decoder

    @property
    def words(self) -> Tensor:
        return self.encoders.text.words.weight

    def read(self, texts: Texts, concepts: Texts | None = None) -> Encoded:
        """pooled [B, D]: the decoder's state at [SEP], looking at T_e of [caption; concepts]; no picture."""
        states, mask = self.text_states(texts, concepts)
        decoded = self.decoder(texts.ids, texts.language, states + self.types[1], mask, self.words)
        last = decoded[torch.arange(len(texts), device=mask.device), texts.mask.sum(1) - 1]
        return Encoded(unit(self.encoders.text_projection(last)))

    def text_states(self, texts: Texts, concepts: Texts | None) -> tuple[Tensor, Tensor]:
        """T_e of [caption; concepts] [B, L, W] and its mask; the concepts' positions start anew, [SEP] before them."""
        if concepts is None:
            return self.encoders.text(texts.ids, texts.mask), texts.mask
        behind = concepts.ids.clone()
        behind[:, 0] = self.vocabulary.sep
        # of a row without any, not even their [SEP]
        concept_mask = concepts.mask & (concepts.mask.sum(1, keepdim=True) > 1)
        places = [torch.arange(part.ids.shape[1], device=behind.device) for part in (texts, concepts)]
        mask = torch.cat([texts.mask, concept_mask], 1)
        return self.encoders.text(torch.cat([texts.ids, behind], 1), mask, places=torch.cat(places)), mask

    def named(self, concepts: Texts | None, rows: int) -> Encoded:
        """T_e of the concepts alone, states "last" [B, S, W]; None: of [CLS]."""
        if concepts is None:
            ids = torch.full((rows, 1), self.vocabulary.cls, device=self.types.device)
            concepts = Texts(ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids[:, 0]))
        states = self.encoders.text(concepts.ids, concepts.mask)
        return Encoded(states={"last": states}, state_mask=concepts.mask)

    def context(self, images: Encoded | None, concepts: Encoded) -> tuple[Tensor, Tensor]:
        """What tells captions, [B, S, W] with its mask: picture, then `named` concepts."""
        names, mask = concepts.states["last"] + self.types[1], cast(Tensor, concepts.state_mask)
        if images is None:
            return names, mask
        seen = self.image_to_decoder(images.states["last"]) + self.types[0]
        real = torch.ones(seen.shape[:2], dtype=torch.bool, device=seen.device)
        return torch.cat([seen, names], 1), torch.cat([real, mask], 1)

    # ---- use: whole pictures, texts without concepts

    def encode_images(self, images: Images) -> Encoded:
        return self.encoders.encode_images(images)

    def encode_texts(self, texts: Texts) -> Encoded:
        return self.read(texts)

    def speaker(self, images: Encoded | None, prompt: Texts | None, language: Tensor, cached: bool = True) -> Speaker:
        """The decoder before its first word. prompt: names of what the pictures show, if any."""
        memory = self.context(images, self.named(prompt, len(language)))
        return Speaker(self.decoder, self.words, language, *memory, cached)

    def generate(
        self,
        images: Encoded | None,
        prompt: Texts | None,
        language: Tensor,
        how: Generation,
        keys: Tensor | None = None,
    ) -> Generated:
        """Captions of pictures, with names of what they show or without."""
        if images is None:
            raise self.lacks("translate", "its decoder tells captions of pictures; give a picture")
        how = replace(how, most=min(how.most or self.config.text.length, self.config.text.length - 2))
        return generate(self.speaker(images, prompt, language), self.vocabulary, how, keys)

    def likelihood(self, images: Encoded | None, prompt: Texts | None, answers: Texts) -> Tensor:
        return self.decoder.likelihood(answers, *self.context(images, self.named(prompt, len(answers))), self.words)
