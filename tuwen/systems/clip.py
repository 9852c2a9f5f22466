"""CLIP: the baseline every other system is compared with."""

from dataclasses import dataclass, field

from tuwen.data.batch import Batch, Images, Texts
from tuwen.data.text import Vocabulary
from tuwen.nn.clips import merged
from tuwen.nn.encoded import Encoded
from tuwen.nn.sizes import ImageTowerConfig, TextTowerConfig, size
from tuwen.nn.temperature import log_scale
from tuwen.nn.towers import DualEncoder
from tuwen.objectives.gather import global_contrast
from tuwen.systems.survey import Axes
from tuwen.systems.system import Losses, Paper, Progress, Reads, System


@dataclass(frozen=True)
class CLIPConfig:
    """Towers and shared width. The published models are sizes "clip-b32", "clip-b16" and "clip-l14"."""

    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    embed: int = 512
    nested: tuple[int, ...] = ()  # widths of prefixes that are to be vectors of their own, see `nested_mean`

    @classmethod
    def sized(cls, name: str) -> "CLIPConfig":
        return size(name).fill(cls)


class CLIP(System):
    """Two towers, one vector each, symmetric contrast over the global batch (Radford et al. 2021, section 2.3).

    Ours differs in one thing: two rows with one picture or one text are positives of each other, not negatives.
    """

    paper = Paper(
        title="Learning Transferable Visual Models From Natural Language Supervision",
        venue="ICML 2021",
        arxiv="2103.00020",
        code="github.com/openai/CLIP",
        idea="match pictures and texts of a batch by one vector each",
        fidelity="paper",
        image_encoder="ViT",
        text_encoder="BERT-like or causal transformer",
        interaction="cosine of two vectors",
        objectives=("image-text contrast",),
        axes=Axes(
            text="gpt2", vision=("patch",), interaction=("dot_product",), objectives=("cmcl",), data=("private",)
        ),
    )
    Config = CLIPConfig
    softens = True

    @classmethod
    def reads(cls, config: CLIPConfig) -> Reads:
        return Reads(clips=True)

    def __init__(self, config: CLIPConfig, vocabulary: Vocabulary):
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.encoders = DualEncoder(config.image, config.text, config.embed, vocabulary)
        self.log_scale = log_scale()

    def losses(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        images, texts = encoded["images"].pooled, encoded["texts"].pooled
        temperature = (-self.log_scale).exp()
        contrast = global_contrast(images, texts, batch.same(), temperature, self.config.nested, batch.softening())
        return Losses({"contrast": contrast}, metrics={"temperature": temperature.detach()})

    def encode_images(self, images: Images) -> Encoded:
        """Of a clip the mean of its frames' vectors (CLIP4Clip's "meanP")."""
        return merged(self.encoders.encode_images(images, states=False), images.owner)

    def encode_texts(self, texts: Texts) -> Encoded:
        return self.encoders.encode_texts(texts.ids, texts.mask, states=False)
