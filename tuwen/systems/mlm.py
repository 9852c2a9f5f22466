"""Masked words: a text tower that learns from texts alone."""

from dataclasses import dataclass, field

from torch import nn

from tuwen.data.batch import Batch, Texts
from tuwen.data.text import Vocabulary, mask_words
from tuwen.nn.encoded import Encoded
from tuwen.nn.fusion import WordHead
from tuwen.nn.sizes import ImageTowerConfig, TextTowerConfig, size
from tuwen.nn.towers import text_tower, unit
from tuwen.objectives.masked_language import masked_language, masked_positions
from tuwen.systems.survey import Axes
from tuwen.systems.system import Losses, Needs, Paper, Progress, System


@dataclass(frozen=True)
class MLMConfig:
    """`image` is what every run has, and no picture is read. whole_words: a word is hidden whole or not at all."""

    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    mask_share: float = 0.15
    whole_words: bool = False
    not_built = ("image",)  # see `tuwen.nn.memory`

    @classmethod
    def sized(cls, name: str) -> "MLMConfig":
        return size(name).fill(cls)


class MLM(System):
    """BERT's first objective (Devlin et al. 2019, section 3.1): 15 of 100 tokens are hidden and told from the others.

    MAX-VL's first stage for texts (its card, section 5). No next sentence is told, as RoBERTa found it of no use.
    """

    paper = Paper(
        title="BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
        venue="NAACL 2019",
        arxiv="1810.04805",
        code="github.com/google-research/bert",
        idea="hidden words of a text are told from those around them",
        fidelity="paper",
        image_encoder="none",
        text_encoder="BERT",
        interaction="none",
        objectives=("masked language",),
        axes=Axes(
            text="bert", vision=(), interaction=("none",), objectives=("mlm",), data=("ccnews_books", "mimic_cxr")
        ),
    )
    Config = MLMConfig
    training_only = ("word_head",)

    @classmethod
    def needs(cls, config: MLMConfig) -> Needs:
        return Needs(sources={"texts": 1.0}, spans=("word",) if config.whole_words else ())

    def __init__(self, config: MLMConfig, vocabulary: Vocabulary):
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.encoders = nn.ModuleDict({"text": text_tower(config.text, vocabulary)})
        self.word_head = WordHead(config.text.width, vocabulary.size)

    def encode(self, batch: Batch, progress: Progress) -> dict[str, Encoded]:
        return {}  # what is read is masked first

    def losses(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        texts = batch.texts
        draws = progress.uniform(batch, 3 * texts.ids.shape[1], "mask")
        words = texts.spans if self.config.whole_words else None
        masked, labels = mask_words(texts, self.vocabulary, draws, self.config.mask_share, words, sep=False, some=True)
        index, hidden = masked_positions(labels)
        states = self.encode_texts(masked).states["last"]
        logits = self.word_head(states.flatten(0, 1)[index], self.encoders["text"].words.weight)
        right = (logits.detach().argmax(1) == hidden).float().mean()
        return Losses({"masked_words": masked_language(logits, hidden)}, metrics={"words_right": right})

    def encode_texts(self, texts: Texts) -> Encoded:
        """pooled [B, W], a unit vector as `model.text.pool` says; states "last" of all tokens."""
        tower = self.encoders["text"]
        ids, mask = tower.padded(texts.ids, texts.mask)
        states = tower(ids, mask)
        return Encoded(unit(tower.pooled(states, mask)), states={"last": states}, state_mask=mask)
