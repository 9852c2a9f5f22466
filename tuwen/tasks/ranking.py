"""How retrieval is fine-tuned: by the system's own losses, or by a score that ranks a picture's text among others."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tuwen.data.batch import Batch
from tuwen.nn.encoded import Encoded
from tuwen.objectives.matching import candidates, ranking_loss
from tuwen.systems.system import Head, Losses, Progress, System
from tuwen.tasks.task import TaskConfig


@dataclass(frozen=True)
class RetrievalConfig(TaskConfig):
    """way: "losses", the system's own for retrieval; "ranking", the paper's score of a pair (ViLT, BridgeTower), which
    starts as the logit of a match and then takes its place. candidates: texts a picture that it is taught among."""

    way: Literal["losses", "ranking"] = "losses"
    candidates: int = 16

    def __post_init__(self):
        if not 2 <= self.candidates <= 2**12:
            raise ValueError(f"candidates must lie between 2 and {2**12}, got {self.candidates}")


def retrieval_head(system: System, config: RetrievalConfig) -> Head:
    """The head of a config.

    Raises:
        UserError: ranking, of a system whose paper has no score for it.
    """
    if config.way == "losses":
        return RetrievalHead(system)
    layers = system.adapt("ranking")
    if layers is None:
        raise system.lacks("rank by a head", "its paper has none; leave out task.way=ranking")
    return Ranker(layers, config.candidates)


class RetrievalHead(Head):
    """No weights of its own: the system's fine-tuning for retrieval, with its identities, queue and hard negatives, and
    the teachers of its pre-training."""

    def __init__(self, system: System):
        super().__init__()
        self.teachers = system.teachers

    def losses(self, system: System, batch: Batch, progress: Progress) -> Losses:
        return system.retrieval(system.encode_whole(batch), batch, progress)

    def before_step(self, system: System, progress: Progress) -> None:
        system.before_step(progress)

    def after_step(self, system: System, keep: Mapping[str, Tensor], progress: Progress) -> None:
        system.after_step(keep, progress)


class Ranker(Head):
    """A score of every pair, taught by cross entropy: a picture's own text among others of the batch (BridgeTower card,
    section 4, "irtr": fifteen, there of the data set)."""

    def __init__(self, layers: nn.Module, candidates: int):
        super().__init__()
        self.layers, self.candidates = layers, candidates

    def begin(self, system: System) -> None:
        begin: Any = self.layers.begin
        begin(system)

    def match(self, system: System, images: Encoded, texts: Encoded) -> Tensor:
        """[N, 1] scores of pairs (picture n, text n)."""
        return self.layers(system.fuse([images], texts).pooled)

    def losses(self, system: System, batch: Batch, progress: Progress) -> Losses:
        assert batch.images is not None
        assert batch.texts is not None
        images, texts, rows = system.encode_images(batch.images), system.encode_texts(batch.texts), len(batch)
        draws = progress.uniform(batch, rows, "candidates")
        chosen, counts = candidates(batch.same_here(), draws, self.candidates)
        own = torch.arange(rows, device=chosen.device).repeat_interleave(chosen.shape[1])
        scores = self.match(system, images.select(own), texts.select(chosen.flatten())).view_as(chosen)
        first = (scores.detach().argmax(1) == 0).float().mean()
        return Losses({"ranking": ranking_loss(scores.float(), counts)}, {}, {"ranked_first": first})
