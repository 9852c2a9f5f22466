"""SLAN: regions picked and placed for each text, without a box ever seen in training."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from tuwen.data.batch import Batch, Images, Texts
from tuwen.data.spans import KINDS
from tuwen.data.text import Vocabulary
from tuwen.nn.boxes import corners, hot_box, overlap
from tuwen.nn.encoded import Encoded
from tuwen.nn.fusion import CrossEncoder, MatchHead
from tuwen.nn.locator import Candidates, Locator, Regions
from tuwen.nn.sizes import CrossEncoderConfig, ImageTowerConfig, TextTowerConfig, size
from tuwen.nn.temperature import Temperature, log_scale
from tuwen.nn.towers import DualEncoder
from tuwen.objectives.contrastive import directional_contrastive, logits_of
from tuwen.objectives.gather import against_all, global_contrast
from tuwen.objectives.location import assign, progressive_regression, repulsion
from tuwen.objectives.matching import drawn_pairs, log_odds, matching_accuracy, matching_gain, matching_loss
from tuwen.similarity.region import phrase_scores, region_word_scores
from tuwen.similarity.token_wise import token_scores
from tuwen.systems.survey.axes import Axes
from tuwen.systems.system import Fused, Located, Losses, Paper, Progress, Reads, System
from tuwen.teachers.momentum import Momentum
from tuwen.teachers.pace import Pace


@dataclass(frozen=True)
class SLANConfig:
    """regions N and steps L of the locator; weights of the terms that need one (card section 4)."""

    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    fusion: CrossEncoderConfig = field(default_factory=CrossEncoderConfig)
    embed: int = 256
    nested: tuple[int, ...] = ()  # widths of prefixes that are to be vectors of their own, see `nested_mean`
    regions: int = 32
    steps: int = 3
    boxes: float = 0.1  # weight of the regression, reached after a fifth of the run; 0: boxes learn by pooling alone
    repulsion: float = 0.05
    peak: float = 0.2  # least height of a heat map's peak over its mean, in cosine, for its box to be a reference
    momentum: float = 0.995
    momentum_rises: bool = True  # from 0.1 in the first steps, see `Momentum`
    hardness: float | None = None  # of negatives: 1 as published, 0 any wrong pair; None: self-paced, see `Pace`
    score: Literal["fitted", "published"] = "fitted"  # the final one: see `tuwen.predictor.Predictor.final`

    @classmethod
    def sized(cls, name: str) -> "SLANConfig":
        towers = size(name)
        regions = 16 if name in ("tiny", "demo") else 32
        return towers.fill(cls, regions=regions)


class SLAN(System):
    """Contrast, region filter, region adaptor, region-word alignment, matching over regions (Zhai et al., ICCV 2023).

    RECONSTRUCTED ("R-SLAN" of the method card): the abstract alone could be verified; sections are the card's. Boxes
    come from a momentum teacher's heat maps of words (source a of section 4), never from data. [choice]s beyond the
    card's: words that look for regions are those of noun phrases where a text has any; filter and alignment share one
    space of unit vectors; the alignment's features are the picture's alone, so that a text cannot match itself;
    the filter learns by a contrast of the whole batch over text-free candidates (best candidate a word), the
    located regions by one against the two wrong partners that matching reads; a heat map's box is the spot
    that hangs together with its peak. Left out: the captioning decoder.
    """

    paper = Paper(
        title="SLAN: Self-Locator Aided Network for Vision-Language Understanding",
        venue="ICCV 2023",
        arxiv="2211.16208",
        code="github.com/scok30/SLAN (empty)",
        idea="a region filter and a region adaptor find the boxes a text speaks of, without gold boxes",
        fidelity="reconstructed",
        image_encoder="ViT with a pyramid of maps",
        text_encoder="BERT",
        interaction="cosine, then text queries over image tokens and located regions",
        objectives=("image-text contrast", "region-word contrast", "image-text matching", "progressive boxes"),
        axes=Axes(
            text="bert",
            vision=("patch", "region"),
            interaction=("stacked",),
            objectives=("cmcl", "fine_contrast", "itm", "location"),
            parts=("locator", "phrases", "teacher"),
            data=("private",),
        ),
    )
    Config = SLANConfig
    softens = True
    training_only = ("teacher", "pace")
    index_fields = ("pooled", "states.last", "states.words")
    fuses = 1

    @classmethod
    def reads(cls, config: SLANConfig) -> Reads:
        return Reads(spans=("phrase",))

    def __init__(self, config: SLANConfig, vocabulary: Vocabulary):
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.encoders = DualEncoder(config.image, config.text, config.embed, vocabulary)
        heads = math.gcd(config.embed, config.fusion.heads)  # the fusion's, as far as they divide the narrower space
        self.locator = Locator(config.image.width, config.text.width, config.embed, heads, config.regions, config.steps)
        self.region_to_fusion = nn.Linear(config.embed + 4, config.image.width)  # states and their boxes
        self.fusion = CrossEncoder(config.fusion, config.image.width)
        self.match_head = MatchHead(config.fusion.width)
        self.temperature = Temperature()
        self.log_scale = log_scale()  # of region-word scores
        self.teacher = Momentum(self, ("encoders", "locator"), config.momentum, config.momentum_rises)
        self.pace = Pace(config.hardness)

    def before_step(self, progress: Progress) -> None:
        self.teacher.update(self, progress.step)

    def losses(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        images, texts, rows = encoded["images"], encoded["texts"], len(batch)
        same = batch.same()
        contrast = global_contrast(
            images.pooled, texts.pooled, same, self.temperature, self.config.nested, batch.softening()
        )
        candidates = self.locator.candidates(self.patches(images))
        words = self.locator.words(texts.states["last"])
        significance = self.filter_contrast(candidates, words, texts.states["words"], same)

        closeness = logits_of(images.pooled, texts.pooled, self.temperature)
        draws = progress.uniform(batch, 2, "hard negatives")
        pairs = drawn_pairs(closeness.T, closeness, batch.same_here(), draws, hardness=self.pace.hardness)
        paired = texts.select(pairs.texts)
        regions = self.locate_regions(candidates.select(pairs.images), paired)
        logits = self.match_head(self.fused(images.select(pairs.images), paired, regions)[:, 0])
        scores = region_word_scores(words[pairs.texts], paired.states["words"], regions.features, regions.gates)
        terms = {
            "contrast": contrast,
            "words": significance,
            "regions": self.region_contrast(scores, pairs.labels),
            "matching": matching_loss(logits, pairs.labels),
        }
        if self.config.repulsion:
            terms["repulsion"] = self.config.repulsion * repulsion(regions.boxes[:rows])
        metrics = {"box_area": regions.boxes[..., 2:].detach().prod(-1).mean()}
        if self.config.boxes:
            located, share = self.regression([step[:rows] for step in regions.steps], texts.states["words"], batch)
            warm = min(1.0, progress.step / (0.2 * progress.total_steps))
            terms["boxes"] = self.config.boxes * warm * located
            metrics["references"] = share
        metrics |= {"matching_accuracy": matching_accuracy(logits, pairs.labels), **self.pace.metrics()}
        gain = matching_gain(terms["matching"], pairs.labels)
        return Losses(terms, {"matching_gain": gain.expand(rows)}, metrics)

    def after_step(self, keep: Mapping[str, Tensor], progress: Progress) -> None:
        self.pace.update(keep["matching_gain"])

    def filter_contrast(self, candidates: Candidates, words: Tensor, real: Tensor, same: Tensor) -> Tensor:
        """Section 4, L_rw over the whole batch: a text's words, each at its best candidate, against all pictures."""
        places = Encoded(tokens=candidates.features[:, candidates.middle])
        scale = self.log_scale.exp()
        to_text, to_image = against_all(places, Encoded(tokens=words, token_mask=real), best_place)
        return directional_contrastive(scale * to_text, scale * to_image, same)

    def region_contrast(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Section 4, L_rw on located regions: the matched pair against its wrong picture and wrong text."""
        matched, wrong_image, wrong_text = (scores * self.log_scale.exp()).chunk(3)
        _, exists_image, exists_text = (labels >= 0).chunk(3)
        apart = torch.cat([wrong_image - matched, wrong_text - matched])
        exists = torch.cat([exists_image, exists_text])
        return (nn.functional.softplus(apart) * exists).sum() / exists.sum().clamp(min=1)

    def regression(self, steps: list[Tensor], real: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Section 4, L_reg: towards the boxes of the teacher's heat maps; and the share of words that gave one."""
        with torch.no_grad():
            patches = self.patches(self.teacher.encoders.encode_images(batch.images))
            states = self.teacher.encoders.encode_texts(batch.texts.ids, batch.texts.mask).states["last"]
            candidates = self.teacher.locator.candidates(patches)
            heat = self.heat(candidates, self.teacher.locator.words(states))  # [B, L, h, w]
            high = heat.amax((2, 3)) - heat.mean((2, 3)) >= self.config.peak
            sound, share = (real & high).clone(), real.new_zeros(real.shape, dtype=heat.dtype)
            boxes = heat.new_full((*real.shape, 4), 0.5)
            boxes[sound], share[sound] = hot_box(heat[sound])
            sound &= (share > 0.01) & (share < 0.9)
            references, has = assign(steps[0], boxes, sound)
        return progressive_regression(steps, references, has), sound.sum() / real.sum().clamp(min=1)

    def heat(self, candidates: Candidates, words: Tensor) -> Tensor:
        """[R, L, 2h, 2w] cosine of each word with each place of the middle level, smoothly between places."""
        cosine = words @ candidates.features[:, candidates.middle].mT
        side = round(cosine.shape[-1] ** 0.5)
        maps = cosine.unflatten(-1, (side, side)).float()
        return nn.functional.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)

    # ---- use

    def encode_images(self, images: Images) -> Encoded:
        return self.encoders.encode_images(images)

    def encode_texts(self, texts: Texts) -> Encoded:
        """states "words" [B, L] bool: the words that look for regions."""
        ids, mask = self.encoders.text.padded(texts.ids, texts.mask)
        encoded = self.encoders.encode_texts(ids, mask)
        return replace(encoded, states={**encoded.states, "words": self.content(replace(texts, ids=ids, mask=mask))})

    def content(self, texts: Texts) -> Tensor:
        """[S, L] bool: tokens of noun phrases; of a text without any, all but the special ones."""
        if texts.spans is None:
            raise self.lacks("encode_texts", "the texts come without spans of kind phrase")
        spans, place = texts.spans.of(KINDS.index("phrase")), torch.arange(texts.ids.shape[1], device=texts.ids.device)
        inside = (place >= spans.start[:, None]) & (place < spans.end[:, None])
        covered = torch.zeros_like(texts.ids).index_add_(0, spans.sequence, inside.long()) > 0
        plain = texts.mask & (texts.ids != self.vocabulary.cls) & (texts.ids != self.vocabulary.sep)
        return torch.where(covered.any(1, keepdim=True), covered, plain)

    def patches(self, images: Encoded) -> Tensor:
        """[B, h w, W] the tower's tokens without a class token."""
        return self.encoders.image.grid(images.states["last"])

    def locate_regions(self, candidates: Candidates, texts: Encoded) -> Regions:
        """The regions of pairs (picture n, text n)."""
        return self.locator(candidates, texts.states["last"], texts.state_mask, texts.states["words"].bool())

    def fused(self, images: Encoded, texts: Encoded, regions: Regions) -> Tensor:
        """[R, L, W] text states over image tokens and regions with their boxes (section 3.6).

        Regions are weighed by their gates (section 3.3), so that what reads them trains the filter.
        """
        gated = regions.states * regions.gates.exp()[..., None].to(regions.states.dtype)
        placed = self.region_to_fusion(torch.cat([gated, regions.boxes.to(gated.dtype)], -1))
        memory = torch.cat([images.states["last"], placed], 1)
        return self.fusion(texts.states["last"], texts.state_mask, memory, None)

    def fuse(self, images: Sequence[Encoded], texts: Encoded) -> Fused:
        """Of one picture a text, its regions located for that very text."""
        if len(images) != 1:
            raise self.lacks("fuse", f"it reads one picture a text, not {len(images)}")
        (image,) = images
        regions = self.locate_regions(self.locator.candidates(self.patches(image)), texts)
        states = self.fused(image, texts, regions)
        return Fused(states[:, 0], states, texts.state_mask)

    def match(self, images: Encoded, texts: Encoded) -> Tensor:
        """Log-odds of the match plus the region-word score at its learned scale: its order counts, not its zero."""
        regions = self.locate_regions(self.locator.candidates(self.patches(images)), texts)
        logits = self.match_head(self.fused(images, texts, regions)[:, 0])
        words, real = self.locator.words(texts.states["last"]), texts.states["words"].bool()
        local = region_word_scores(words, real, regions.features, regions.gates) * self.log_scale.exp()
        return (log_odds(logits.float()) + local.float())[:, None]

    def rerank(self, match: Tensor, first: Tensor) -> Tensor:
        """The match's logit, s_loc and the cosine, each at the scale it was learned with (section 6's sum) [choice]."""
        return match.float().mean(-1) + first / self.temperature

    def locate(self, images: Images, texts: Texts) -> Located:
        """Boxes, best first, and the mean heat of the words.

        Ranked by overlap with the heat's own spot, then by the card's fit with all words (section 6) [choice]: fit
        alone prefers small boxes deep inside a thing, which are purest.
        """
        encoded, pictures = self.encode_texts(texts), self.encode_images(images)
        candidates = self.locator.candidates(self.patches(pictures))
        regions = self.locate_regions(candidates, encoded)
        words, real = self.locator.words(encoded.states["last"]), encoded.states["words"]
        heat = (self.heat(candidates, words) * real[..., None, None]).sum(1) / real.sum(1).clamp(min=1)[:, None, None]
        spot, _ = hot_box(heat)
        fit = phrase_scores(words, real, regions.features, regions.gates)
        near = overlap(regions.boxes, spot[:, None].to(regions.boxes)) + 0.01 * fit
        scores, order = torch.sort(near, dim=1, descending=True, stable=True)
        boxes = corners(regions.boxes).gather(1, order[..., None].expand(-1, -1, 4)).clamp(0, 1)
        return Located(boxes, scores, heat)


def best_place(images: Encoded, texts: Encoded) -> tuple[Tensor, Tensor]:
    """[I, T] mean over words of the best place, for both directions: a place need not have a word."""
    score = token_scores(images, texts)[1]
    return score, score
