"""The discrete VAE of DALL-E: pictures as a grid of codes, the patch tokenizer that others learn to predict."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from tuwen.data.batch import Batch, Images
from tuwen.data.text import Vocabulary
from tuwen.data.views import View
from tuwen.nn.encoded import Encoded
from tuwen.nn.patch_codes import FACTOR, CodeDecoder, CodeEncoder, CodesConfig, map_pixels
from tuwen.nn.sizes import ImageTowerConfig, TextTowerConfig, size
from tuwen.systems.survey import Axes
from tuwen.systems.system import Losses, Needs, Paper, Progress, System


@dataclass(frozen=True)
class DVAEConfig:
    """`image` gives the grid alone (side over patch), so that a code stands for each patch of a tower of that config;
    `text` is what every run has, and no text is read.

    uniform: weight of the pull towards using all codes alike. coldest: the Gumbel temperature at the end, from 1.
    """

    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    codes: CodesConfig = field(default_factory=CodesConfig)
    not_built = ("image", "text")  # see `tuwen.nn.memory`
    uniform: float = 0.01
    coldest: float = 1 / 16

    @classmethod
    def sized(cls, name: str) -> "DVAEConfig":
        return size(name).fill(cls, codes=CodesConfig.sized(name))

    @property
    def side(self) -> int:
        """Pixels of the pictures it reads."""
        return self.image.side // self.image.patch * FACTOR


class DVAE(System):
    """Reconstruction through codes drawn with the Gumbel-softmax relaxation, its temperature annealed (section 2.1).

    RECONSTRUCTED: encoder and decoder were released, their training was not. Ours differs by choice: the reconstruction
    is a squared error in place of the logit-Laplace likelihood; the pull towards the uniform prior acts on the mean use
    of the codes over a batch instead of on every place, since at small sizes the published term leaves few codes alive,
    and it weighs 0.01 throughout, where theirs rises to 6.6; the decoder's blocks are the encoder's. The
    encoder's layout is the published one.
    """

    paper = Paper(
        title="Zero-Shot Text-to-Image Generation",
        venue="ICML 2021",
        arxiv="2102.12092",
        code="github.com/openai/DALL-E (encoder and decoder)",
        idea="a picture is a grid of discrete codes, from which it can be drawn again",
        fidelity="reconstructed",
        image_encoder="convolutions",
        text_encoder="none",
        interaction="none",
        objectives=("reconstruction from codes",),
        decoder="convolutions",
        axes=Axes(
            text="none",
            vision=("grid",),
            interaction=("none",),
            objectives=("vae",),
            data=("private",),
            decoder="pixels",
            parts=("codebook",),
        ),
    )
    Config = DVAEConfig

    @classmethod
    def needs(cls, config: DVAEConfig) -> Needs:
        return Needs(views={"codes": View(config.side)}, sources={"images": 1.0})

    @classmethod
    def compares_rows(cls, config: DVAEConfig) -> bool:
        return config.uniform > 0  # codes are to be used evenly by the batch as a whole

    def __init__(self, config: DVAEConfig, vocabulary: Vocabulary):
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.encoder, self.decoder = CodeEncoder(config.codes), CodeDecoder(config.codes)

    def losses(self, encoded: Mapping[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        pixels = map_pixels(batch.images.views["codes"])
        logits = self.encoder(pixels).float()  # [B, V, g, g]
        done = min(1.0, progress.step / max(1, 0.75 * progress.total_steps))
        temperature = math.exp(math.log(self.config.coldest) * done)
        restored = self.decoder(F.gumbel_softmax(logits, temperature, dim=1))
        use = logits.softmax(1).mean((0, 2, 3))  # [V], of the whole batch
        waste = math.log(len(use)) + (use * use.clamp(min=1e-9).log()).sum()  # KL of the use to the uniform one
        count = logits.detach().argmax(1).flatten().bincount(minlength=len(use)).float()
        share = count / count.sum()
        perplexity = (-(share * share.clamp(min=1e-9).log()).sum()).exp()
        terms = {
            "reconstruction": (restored.float() - pixels).square().mean(),
            "uniform": self.config.uniform * waste,
        }
        return Losses(terms, metrics={"codes_used": perplexity, "temperature": torch.tensor(temperature)})

    def encode(self, batch: Batch, progress: Progress) -> dict[str, Encoded]:
        return {}

    def encode_images(self, images: Images) -> Encoded:
        """states "codes": [B, g * g] int64, row by row."""
        pixels = images.views.get("codes")
        if pixels is None:
            side = self.config.side
            pixels = F.interpolate(images.pixels.float(), (side, side), mode="bicubic", antialias=True)
            pixels = (pixels / 255).clamp(0, 1)
        return Encoded(states={"codes": self.encoder.codes(pixels).flatten(1)})
