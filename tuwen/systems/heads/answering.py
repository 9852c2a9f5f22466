"""Visual question answering as a ranking of answers by a decoder (ALBEF, section 6 of its card; BLIP and SIMLA alike).

Shape legend: B questions, A answers, L tokens of an answer ([CLS] first, [SEP] last), N pairs of both, V words.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tuwen.data.batch import Batch
from tuwen.nn.encoded import Encoded, Fused
from tuwen.nn.fusion import WordHead
from tuwen.nn.sizes import TextTowerConfig
from tuwen.nn.towers import TextTower
from tuwen.nn.transformer import Stack, StackConfig
from tuwen.systems.system import Head, Losses, Needs, Progress, System

FIRST = 128  # answers whose first word is likeliest, which alone are said in full
NEVER = -1e4  # log-likelihood of the others
CHUNK = 1024  # pairs said at a time


class AnswerDecoder(nn.Module):
    """Causal layers that read a question's fused states; word embeddings, positions and word head are its own."""

    def __init__(self, text: TextTowerConfig, layers: StackConfig, memory_width: int, vocabulary_size: int):
        super().__init__()
        self.words = nn.Embedding(vocabulary_size, text.width)
        self.positions = nn.Parameter(torch.zeros(text.length, text.width))
        self.embedding_norm = nn.LayerNorm(text.width, text.eps)
        self.dropout = nn.Dropout(text.dropout)
        self.stack = Stack.of(layers, "post", memory_width, causal=True)
        self.word_head = WordHead(text.width, vocabulary_size, text.eps)

    def forward(self, ids: Tensor, memory: Tensor, memory_mask: Tensor | None) -> Tensor:
        """[N, L, V]: logits of the word after each of ids [N, L], given memory [N, S, W]."""
        x = self.dropout(self.embedding_norm(self.words(ids) + self.positions[: ids.shape[1]]))
        return self.word_head(self.stack(x, None, memory, memory_mask), self.words.weight)

    @torch.no_grad()
    def begin(self, text: TextTower, layers: nn.ModuleList, word_head: WordHead | None) -> None:
        """Starts as the text tower's embeddings and the given layers; what these lack or have wider is new."""
        self.words.load_state_dict(text.words.state_dict())
        self.positions.copy_(text.positions)
        self.embedding_norm.load_state_dict(text.embedding_norm.state_dict())
        for mine, theirs in zip(self.stack.blocks, layers, strict=True):
            own = mine.state_dict()
            fits = {name: x for name, x in theirs.state_dict().items() if name in own and own[name].shape == x.shape}
            mine.load_state_dict(fits, strict=False)
        if word_head is not None:
            self.word_head.load_state_dict(word_head.state_dict())


class AnswerRanker(Head):
    """Learns to say each answer that people gave, weighed by how many did; ranks the known answers by likelihood.

    Loss: sum over a question's answers of share x cross entropy of all its words, mean over questions; a share `alpha`
    of it holds the words against the momentum copies' distribution instead. Ours differs from the official code: the
    first word counts once in the ranking (there twice, card section 10). `parts`: of the system, which are copied.
    """

    answers: Tensor
    answer_mask: Tensor

    def __init__(self, decoder: AnswerDecoder, parts: Sequence[str] = (), alpha: float = 0.0):
        super().__init__()
        self.decoder, self.alpha = decoder, alpha
        self.momentum = (*parts, "head.decoder") if parts else ()  # type: ignore[misc]

    def tell_answers(self, ids: Tensor, mask: Tensor) -> None:
        """ids [A, L] of the known answers, mask [A, L]."""
        self.register_buffer("answers", ids, persistent=False)
        self.register_buffer("answer_mask", mask, persistent=False)

    def needs(self) -> Needs:
        return Needs(columns=("weight",))

    def begin(self, system: System) -> None:
        layers, word_head = system.answer_layers()
        self.decoder.begin(system.encoders.text, layers, word_head)

    def before_step(self, system: System, progress: Progress) -> None:
        if self.momentum:
            self.teacher.update(system, progress.step)

    def losses(self, system: System, batch: Batch, progress: Progress) -> Losses:
        weights = batch.columns["weight"]
        assert isinstance(weights, Tensor)
        row, answer = torch.nonzero(weights, as_tuple=True)
        ids, follows = self.answers[answer], self.answer_mask[answer][:, 1:]
        logits = self.next_words(system, self.fused(system, batch), row, ids)
        loss = _said(logits, ids[:, 1:], follows)
        if self.momentum:
            with torch.no_grad(), self.teacher.standing_in(system):
                taught = self.next_words(system, self.fused(system, batch), row, ids).softmax(-1)
            alpha = progress.ramp(self.alpha)
            softened = -((taught * logits.log_softmax(-1)).sum(-1) * follows).sum(1)
            loss = (1 - alpha) * loss + alpha * softened
        return Losses({"answers": (weights[row, answer] * loss).sum() / len(batch)})

    @staticmethod
    def fused(system: System, batch: Batch) -> Fused:
        assert batch.images is not None
        assert batch.texts is not None
        return system.fuse([system.encode_images(batch.images)], system.encode_texts(batch.texts))

    def next_words(self, system: System, fused: Fused, row: Tensor, ids: Tensor) -> Tensor:
        """[N, L - 1, V] float32 logits of the words after the first, of answers ids [N, L] to questions row [N]."""
        mask = None if fused.mask is None else fused.mask[row]
        return self.decoder(ids[:, :-1], fused.states[row], mask).float()

    def logits(self, system: System, images: Sequence[Encoded], texts: Encoded) -> Tensor:
        """[B, A] log-likelihood of every answer, [SEP] included; of the `FIRST` whose first word is likeliest alone."""
        fused = system.fuse(images, texts)
        questions = torch.arange(len(texts), device=fused.states.device)
        begin = self.answers[:1, :2].expand(len(texts), -1)
        first = self.next_words(system, fused, questions, begin)[:, 0].log_softmax(-1)[:, self.answers[:, 1]]
        chosen = first.topk(min(FIRST, first.shape[1]), dim=1).indices
        row = questions[:, None].expand_as(chosen).flatten()
        out = torch.full_like(first, NEVER)
        for part in torch.arange(len(row), device=row.device).split(CHUNK):
            answer = chosen.flatten()[part]
            ids, follows = self.answers[answer], self.answer_mask[answer][:, 1:]
            out[row[part], answer] = -_said(self.next_words(system, fused, row[part], ids), ids[:, 1:], follows)
        return out


def _said(logits: Tensor, words: Tensor, follows: Tensor) -> Tensor:
    """[N]: minus the log-likelihood of words [N, L] by logits [N, L, V], over those that `follows` [N, L] marks."""
    return -(logits.log_softmax(-1).gather(2, words[..., None])[..., 0] * follows).sum(1)
