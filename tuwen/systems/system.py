"""The contract between a published system and everything around it.

A system file holds the parts in `__init__`, the losses top to bottom in `losses`, and the few capabilities its paper
has; all else is a default. B rows of the batch, I pictures, T texts, N pairs, H heads, D shared embedding width.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from tuwen.data import draws
from tuwen.data.batch import Batch, Images, Texts
from tuwen.data.text import Vocabulary
from tuwen.data.views import View
from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded, Fused, Located, Scores, first_vectors
from tuwen.nn.generation import Generated, Generation
from tuwen.nn.temperature import clamp_temperatures
from tuwen.systems.survey.axes import Axes
from tuwen.teachers.momentum import Momentum


@dataclass(frozen=True)
class Paper:
    """Where a system comes from and what it is made of: its row in `tuwen systems`.

    fidelity: "code" (followed from the official code), "paper" (from the paper), or "reconstructed".
    axes: the same in the survey's closed vocabulary (`tuwen.systems.survey`), with data and what objectives require.
    """

    title: str
    venue: str
    arxiv: str
    code: str
    idea: str
    fidelity: str
    image_encoder: str
    text_encoder: str
    interaction: str
    objectives: tuple[str, ...]
    decoder: str = "none"
    axes: Axes | None = None


@dataclass(frozen=True)
class Reads:
    """What a system's encoders read, in training and in use; data that lacks one is refused before any work.

    spans: kinds of spans over the text ("word", "phrase", "entity").
    clips: rows may have several pictures; `encode_images` makes one row of them (`tuwen.nn.clips.merged`).
    features: regions that a detector found, from the corpus's columns "features" and "boxes", as `Images.features`.
    """

    spans: tuple[str, ...] = ()
    clips: bool = False
    features: bool = False


@dataclass(frozen=True)
class Needs:
    """What pre-training a system asks of the data beside; a corpus that lacks one is refused before step 0.

    views: further views of the pictures, by name (COOKIE another crop, FLAVA the same one for its codebook).
    texts: texts drawn a row, of one language (COOKIE two).
    languages: least number of languages a row must have (ERNIE-UniX2's parallel texts: 2).
    sentences: the drawn text split into sentences (MAX-VL), as `Batch.sentences`.
    tags: names of what a picture shows, from the corpus's column "tags", as texts (MVPTR).
    columns: columns of the corpus, by name.
    sources: name -> weight; a step draws one source for the whole global batch (FLAVA). Empty: pairs only.
    spans: kinds that training alone reads (FLAVA masks whole words).
    beside: columns that hold, by language, a further text for every text of a row (a faulty report).
    """

    views: Mapping[str, View] = field(default_factory=dict)
    texts: int = 1
    languages: int = 1
    sentences: bool = False
    tags: bool = False
    columns: tuple[str, ...] = ()
    sources: Mapping[str, float] = field(default_factory=dict)
    spans: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Progress:
    """Where a run stands, and the source of every random draw a system makes.

    step counts optimizer steps from 0; epoch = step // steps_per_epoch.
    """

    step: int
    steps_per_epoch: int
    total_steps: int
    batch_size: int
    seed: int = 0

    @property
    def epoch(self) -> int:
        return self.step // self.steps_per_epoch

    def ramp(self, value: float, epochs: float = 1.0) -> float:
        """0 at step 0, rising linearly to `value` at the end of `epochs`, then constant (ALBEF's alpha)."""
        return value * min(1.0, self.step / (epochs * self.steps_per_epoch))

    def past(self, epochs: float) -> bool:
        """Whether so many epochs have gone by."""
        return self.step >= epochs * self.steps_per_epoch

    @property
    def epoch_pairs(self) -> int:
        """Pairs seen in one epoch, over all processes."""
        return self.steps_per_epoch * self.batch_size

    def uniform(self, batch: Batch, count: int, purpose: str) -> Tensor:
        """[B, count] float64 in [0, 1), a function of (seed, epoch, row, text, purpose) alone."""
        rows = draws.mix(batch.index) ^ batch.text_id
        return draws.uniform(rows, count, self.seed, self.epoch, purpose)


@dataclass(frozen=True)
class Losses:
    """Named scalars, summed by the step, and what the system wants back after the update.

    keep: detached tensors with B rows (features, ids), gathered over micro-batches and processes for `after_step`.
    metrics: further scalars to log (temperature, matching accuracy); no gradient is taken of them.
    first: the batch's `first_vectors`, where the step collects them.
    """

    terms: Mapping[str, Tensor]
    keep: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    first: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        return torch.stack([term.float() for term in self.terms.values()]).sum()


class Head(nn.Module):
    """What is learnt for a task, on top of a system; its weights are the run's `head.*`.

    It calls `encode_images` and `encode_texts`, or `encode_whole`, never `encode`, in which some systems mask.

    momentum: parts it teaches itself with, the system's or its own ("head.decoder"); it updates `teacher`, their copy.
    teachers: role -> what the run in it must be able to, as of a system; "task": to do this very task.
    """

    momentum: ClassVar[tuple[str, ...]] = ()
    teachers: Mapping[str, str] = {}
    teacher: Momentum

    def needs(self) -> Needs:
        """What it asks of the data, beside what the system's encoders read."""
        return Needs()

    def losses(self, system: "System", batch: Batch, progress: Progress) -> Losses:
        """The task's objectives on one (micro-)batch; the only method that must be."""
        raise NotImplementedError

    def begin(self, system: "System") -> None:
        """Once, before step 0, after the weights of `init`: what the paper copies into a head that is new."""

    def before_step(self, system: "System", progress: Progress) -> None:
        """As `System.before_step`, in its place."""

    def after_step(self, system: "System", keep: Mapping[str, Tensor], progress: Progress) -> None:
        """As `System.after_step`, in its place."""


class System(nn.Module):
    """A published way to learn from image-text pairs.

    A subclass has `paper`, a frozen dataclass `Config` (with a classmethod `sized(size)`), `__init__(config,
    vocabulary)`, `encode_images`, `encode_texts` and `losses`; the rest is optional. `index_fields`: parts of `Encoded`
    an index must keep for re-ranking; `training_only`: what use never reads (teacher, queue), in checkpoints alone.
    """

    config: Any
    vocabulary: Vocabulary
    paper: ClassVar[Paper]
    Config: ClassVar[type]
    index_fields: ClassVar[tuple[str, ...]] = ("pooled",)
    training_only: tuple[str, ...] = ()
    renamed: ClassVar[Mapping[str, str]] = {}  # parts -> what older runs have them as, where otherwise
    train_order: ClassVar[str] = "shuffled"  # what `train.order` is in pre-training, unless a run says otherwise
    sees_alone: ClassVar[bool] = False  # pictures have vectors, and texts none: a picture tower of its own (DINO)
    vectors: ClassVar[bool] = True  # of pictures and texts, by which a first stage scores
    translates: ClassVar[bool] = True  # its decoder, if any, reads a text in another language, not pictures alone
    has_places: ClassVar[bool] = True  # what it keeps of a picture are tokens of places, where a box may lie
    fuses: ClassVar[int | None] = None  # most pictures a text that `fuse` takes; None: any number
    teachers: ClassVar[Mapping[str, str]] = {}  # role -> capabilities of the frozen run in it, see `roles`
    softens: ClassVar[bool] = False  # whether its contrast heeds `Batch.softening`
    reads_tags: bool = False  # whether its decoder's prompt is names of what the picture shows

    def __init__(self) -> None:
        super().__init__()
        self.head: Head | None = None  # of the task that is learnt
        self.roles: Mapping[str, System] = {}  # frozen runs; no modules of this one: in no weights and no gradient

    @classmethod
    def reads(cls, config: Any) -> Reads:
        """What this system's encoders read, given its config."""
        return Reads()

    @classmethod
    def needs(cls, config: Any) -> Needs:
        """What pre-training this system asks of the data beside, given its config."""
        return Needs()

    @classmethod
    def compares_rows(cls, config: Any) -> bool:
        """Whether a row's loss hangs on the other rows of its batch: contrast, negatives, means over all words."""
        return True

    def for_use(self) -> Self:
        """The system without its `training_only` parts; it cannot be trained any more."""
        for part in self.training_only:
            owner, _, name = part.rpartition(".")
            self.get_submodule(owner)._modules.pop(name, None)
        return self

    # ---- training: the step calls forward alone, so that DDP and a two-pass step work

    def forward(self, batch: Batch, progress: Progress, collect: bool = False) -> Losses:
        """collect: whether the first-stage vectors that `encode` gave are asked for too (`train.order: grouped`)."""
        clamp_temperatures(self)
        if self.head is not None:
            return self.head.losses(self, batch, progress)
        encoded = self.encode(batch, progress)
        losses = self.losses(encoded, batch, progress)
        return replace(losses, first=first_vectors(encoded, batch)) if collect else losses

    def encode(self, batch: Batch, progress: Progress) -> dict[str, Encoded]:
        """Every tower's output, row by row only, so that it can be replayed in chunks."""
        return self.encode_whole(batch)

    def encode_whole(self, batch: Batch) -> dict[str, Encoded]:
        """What `losses` and `retrieval` read, nothing being hidden in pictures and texts."""
        encoded = {} if batch.images is None else {"images": self.encode_images(batch.images)}
        return encoded if batch.texts is None else {**encoded, "texts": self.encode_texts(batch.texts)}

    def losses(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        """The system's objectives on one (micro-)batch."""
        raise NotImplementedError

    def retrieval(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        """What fine-tuning for retrieval learns from `encode_whole`: by default all losses."""
        return self.losses(encoded, batch, progress)

    def begin(self) -> None:
        """Once, before step 0 of a new run: takes in the weights of parts that were trained elsewhere."""

    def before_step(self, progress: Progress) -> None:
        """Once an optimizer step, before its first forward: momentum updates."""

    def after_step(self, keep: Mapping[str, Tensor], progress: Progress) -> None:
        """Once an optimizer step, after it: queues, collectors. `keep` holds the whole global batch."""

    # ---- memory: state of free shape beside the weights, bounded; in checkpoints, not in the weights of a run

    def memory(self) -> Mapping[str, Tensor]:
        """What a system remembers from epoch to epoch, by name (EGE-CMP's node features); none by default."""
        return {}

    def remember(self, memory: Mapping[str, Tensor]) -> None:
        """Takes in what `memory` gave: on resuming, and from the first process after every `end_epoch`."""
        raise self.lacks("remember", "it has no memory of its own")

    def end_epoch(self, progress: Progress) -> None:
        """After the last step of an epoch, of a system with a memory: the first process renews it here, all get it."""

    def attach(self, head: Head) -> None:
        """From now on the head's losses are learnt."""
        self.head = head
        if head.momentum:
            head.teacher = Momentum(self, head.momentum)
            self.training_only = (*self.training_only, "head.teacher")

    # ---- use: pictures and texts in batches

    def encode_images(self, images: Images) -> Encoded:
        raise self.lacks("encode_images", "it has no image encoder of its own")

    def encode_texts(self, texts: Texts) -> Encoded:
        raise self.lacks("encode_texts", "it has no text encoder of its own")

    def scores(self, images: Encoded, texts: Encoded) -> Scores:
        """First-stage scores, float32; by default the cosine of the pooled vectors, both ways.

        Multiplied in float64 and rounded once, so that how many are scored at a time changes no bit.
        """
        if images.pooled is None or texts.pooled is None:
            raise self.lacks("scores", "it has no first-stage vectors; retrieval must match all pairs")
        cosine = (images.pooled.double() @ texts.pooled.double().T).float()
        return Scores(cosine, cosine)

    def first_logit(self, first: Tensor, direction: str) -> Tensor:
        """First-stage scores in the units that their own contrast learned: the logits over a query's candidates.

        By default over the system's `temperature`, or else times exp(`log_scale`). direction: "image_to_text" or
        "text_to_image", for systems that learn one scale each.
        """
        if isinstance(temperature := getattr(self, "temperature", None), Tensor):
            return first / temperature.detach()
        scale = getattr(self, "log_scale", None)
        return first * scale.detach().exp() if isinstance(scale, Tensor) else first

    # ---- capabilities some systems have

    def matches(self) -> bool:
        """Whether this very run can match: the system can, and its settings leave it a matching head."""
        return self.can("match")

    def match(self, images: Encoded, texts: Encoded) -> Tensor:
        """[N, H] log-odds that pair n = (image n, text n) belongs together, one column a matching head."""
        raise self.lacks("match", "it has no cross encoder")

    def rerank(self, match: Tensor, first: Tensor) -> Tensor:
        """[N] the paper's own score (`model.score=published`) of log-odds [N, H] and first-stage scores; the mean."""
        return match.float().mean(-1)

    def fuse(self, images: Sequence[Encoded], texts: Encoded) -> Fused:
        """Joint states of pictures and a text, for VQA, NLVR, entailment: one `Encoded` a picture, at most `fuses`."""
        raise self.lacks("fuse", "it has no cross encoder")

    def generate(
        self,
        images: Encoded | None,
        prompt: Texts | None,
        language: Tensor,
        how: Generation,
        keys: Tensor | None = None,
    ) -> Generated:
        """A text a row from pictures (captioning), a prompt (translation), or both; `Tokenizer.decode` reads it.

        language: [B] int64, of the texts to make, index into the run's table. keys: see `tuwen.nn.generation.generate`.
        """
        raise self.lacks("generate", "it has no decoder")

    def likelihood(self, images: Encoded | None, prompt: Texts | None, answers: Texts) -> Tensor:
        """[B] log-likelihood of each answer, in the language it names, given picture n, prompt n or both."""
        raise self.lacks("likelihood", "it has no decoder")

    def caption_loss(self, images: Encoded | None, prompt: Texts | None, texts: Texts) -> Tensor:
        """What a decoder learns to say texts by: -log likelihood a word, ends included, or what its paper has."""
        return -self.likelihood(images, prompt, texts).sum() / texts.mask[:, 1:].sum().clamp(min=1)

    def match_heat(self, images: Encoded, texts: Encoded) -> Tensor:
        """[N, h, w]: which places of picture n speak for its matching text n; never negative."""
        raise self.lacks("match_heat", "its match looks at no places")

    def locate(self, images: Images, texts: Texts) -> Located:
        """Where in picture n is what text n says."""
        raise self.lacks("locate", "it has no way to point into a picture")

    def flow(self, images: Encoded, texts: Encoded) -> tuple[Tensor, Tensor]:
        """(F of i2t, F of t2i), each [B, N, L]: which image token is matched with which text token in pair b, for
        systems whose score is the sum of flow times similarity of tokens (`tuwen.similarity`)."""
        raise self.lacks("flow", "it scores by one vector each")

    def image_places(self, images: Images) -> Tensor:
        """[B, N, h, w]: where on a grid over the picture each of `Encoded.tokens` lies; shares that sum to 1 a token.
        By default the tokens are the cells of a square grid, row by row."""
        tokens = self.encode_images(images).tokens
        if tokens is None or math.isqrt(tokens.shape[1]) ** 2 != tokens.shape[1]:
            raise self.lacks("image_places", "its image tokens are no square grid")
        side = math.isqrt(tokens.shape[1])
        cells = torch.eye(side * side, device=tokens.device).view(side * side, side, side)
        return cells.expand(len(tokens), -1, -1, -1)

    def adapt(self, task: str, classes: int = 2, pictures: int = 1) -> nn.Module | None:
        """What the paper learns for a task: a `Head` with losses of its own, or a classifier on `fuse(...).pooled`,
        whose method `begin(system)`, if any, is called as `Head.begin`; None: the task's default."""
        return None

    def answer_layers(self) -> tuple[nn.ModuleList, nn.Module | None]:
        """What a decoder of answers starts as: layers with cross-attention, and the head that tells words, if any."""
        raise self.lacks("answer", "it has no layers that a decoder of answers could start as")

    @classmethod
    def can(cls, capability: str) -> bool:
        """Whether the system itself provides a capability ("match", "fuse", "generate", ...)."""
        return getattr(cls, capability) is not getattr(System, capability)

    @classmethod
    def capabilities(cls) -> tuple[str, ...]:
        names = ("encode_images", "encode_texts", "match", "fuse", "generate", "likelihood", "locate", "flow", "adapt")
        return tuple(name for name in names if cls.can(name))

    def lacks(self, asked: str, why: str, capability: str = "") -> UserError:
        """The error of asking for what this system does not have (`systems.refusal`)."""
        from tuwen.systems import refusal  # which imports this file

        return refusal(type(self), asked, why, capability or asked)
