"""`tuwen knowledge`: vectors of a lexicon's entities from its graph."""

from pathlib import Path
from typing import Any

from tuwen.cli.data import CORPUS
from tuwen.cli.output import only_json, print_json, print_line
from tuwen.cli.parser import add_columns, add_command
from tuwen.cli.train import setting
from tuwen.errors import UserError

EXAMPLES = """\
  tuwen knowledge scenes --out data/things --set epochs=200 batches=4
  tuwen knowledge data/umls --corpus data/reports --out data/umls-seen --set least=20 connected=true
  tuwen train bagformer --corpus scenes --out runs/bags --set tokenizer.lexicon=data/things"""


def add_to(commands) -> None:
    command = add_command(commands, "knowledge", run, "learn vectors of a lexicon's entities from its graph", EXAMPLES)
    source = "scenes, findings, a file of triples, or a folder with lexicon.tsv, classes.json or MRCONSO.RRF"
    command.add_argument("lexicon", metavar="LEXICON", help=source)
    command.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder of the lexicon with vectors")
    command.add_argument("--corpus", metavar="DIR", help=f"keep what its texts name: {CORPUS}")
    add_columns(command)
    command.add_argument("--split", default="train", help="of the corpus (default train)")
    command.add_argument(
        "--set", metavar="NAME=VALUE", dest="sets", type=setting, nargs="+", action="extend", default=[],
        help="change settings of the training: width, margin, negatives, epochs, batches, lr, seed, least, connected",
    )  # fmt: skip
    command.add_argument("--json", action="store_true", help="print one JSON object")


def run(args) -> None:
    with only_json(args.json):
        metrics = learnt_lexicon(args)
    if args.json:
        print_json(metrics)
        return
    print_line(
        f"{metrics['entities']:,} entities, {metrics['edges']:,} edges of {metrics['relations']} kinds; a tail's mean "
        f"reciprocal rank {metrics['mrr']:.3f} (chance {metrics['chance_mrr']:.3f}), among ten {metrics['hits10']:.1f}%"
    )
    print_line(f"use it as --set tokenizer.lexicon={args.out}")


def learnt_lexicon(args) -> dict[str, Any]:
    """Trains, writes the lexicon; what was reached."""
    from tuwen.config import override
    from tuwen.data.corpus import all_texts
    from tuwen.data.lexicons.files import TRIPLES, save_lexicon
    from tuwen.data.lexicons.open import open_lexicon
    from tuwen.data.open import open_corpus
    from tuwen.progress import bars
    from tuwen.training.knowledge import KnowledgeConfig, learn_knowledge
    from tuwen.training.parallel import device

    if (args.out / TRIPLES).exists():
        raise UserError(f"{args.out}: holds a lexicon already; choose another --out")
    config, texts = override(KnowledgeConfig(), dict(args.sets)), None
    if args.corpus:
        corpus = open_corpus(args.corpus, args.split, "skip")
        texts = (text for row in range(len(corpus)) for text in all_texts(corpus.record(row)))
    with bars():
        lexicon, metrics = learn_knowledge(open_lexicon(args.lexicon), config, texts, device("auto"))
    args.out.mkdir(parents=True, exist_ok=True)
    save_lexicon(lexicon, args.out)
    return metrics
