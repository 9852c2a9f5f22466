"""A lexicon with vectors, as a stage: a stage that trains takes it by `set: {tokenizer.lexicon: NAME}`."""

from dataclasses import dataclass, replace

import pyarrow as pa

from tuwen.data.corpus import all_texts, normalise, text_id
from tuwen.data.lexicons.files import save_lexicon
from tuwen.data.lexicons.open import open_lexicon
from tuwen.training.knowledge import KnowledgeConfig, learn_knowledge
from tuwen.training.stages.work import StageWork, keyed


@dataclass(frozen=True)
class LexiconConfig(KnowledgeConfig):
    """lexicon: whose graph is learnt (`tuwen.data.lexicons.open`). least: 0 keeps entities that no text names. seed:
    that of the stage counts."""

    lexicon: str = "scenes"
    least: int = 0


def write_knowledge(work: StageWork) -> pa.Table:
    """Learns the vectors and writes the lexicon into the stage's folder; its table (row id, text id) -> entities says
    how many mentions are linked in each text.

    Raises:
        UserError: no such lexicon, or no edge to learn from.
    """
    config = replace(work.config, seed=work.seed)
    texts = ((row, text) for row in range(len(work.corpus)) for text in all_texts(work.corpus.record(row)))
    once = {(work.corpus.record(row).id, text_id(text)): text for row, text in texts}
    lexicon, metrics = learn_knowledge(open_lexicon(config.lexicon), config, once.values())
    save_lexicon(lexicon, work.folder)
    work.say(f"knowledge: {metrics['entities']:,} entities, a tail's mean reciprocal rank {metrics['mrr']:.3f}")
    counts = [len(lexicon.mentions(normalise(text))) for text in once.values()]
    return keyed([row for row, _ in once], [text for _, text in once], entities=pa.array(counts, pa.int64()))
