"""A run measured by others: sentence-transformers' evaluators and mteb's tasks, on tasks made here."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import tuwen
from tuwen import cli
from tuwen.encoder import cosine_scores, row_vectors
from tuwen.errors import UserError

THEIRS = pytest.mark.slow  # importing the packages takes a minute or two on a busy machine
TEXTS = ["a red circle", "a blue square", "一只狗", "two green stars"]


def colours(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (40, 32), (40 * k % 256, 90, 255 - 30 * k)) for k in range(count)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    run = tmp_path_factory.mktemp("encoder") / "run"
    few = "--size tiny --steps 2 --set train.batch_size=8 data.workers=0"
    assert cli.main(f"train clip --corpus scenes:count=24,side=32 --out {run} {few}".split()) == 0
    return tuwen.load(run)


def test_rows_of_any_kind_keep_their_order():
    def embed(images, texts):
        def row(value):
            return [float(value), 1.0]

        return tuple(None if given is None else torch.tensor([row(v) for v in given]) for given in (images, texts))

    rows = [{"text": "1"}, "2", {"image": 3}, {"image": 4, "text": "5"}, "6"]
    expected = [[1, 1], [2, 1], [3, 1], [9, 2], [6, 1]]
    assert row_vectors(embed, rows).tolist() == expected
    assert row_vectors(embed, rows, 1).tolist() == [row[:1] for row in expected]
    assert row_vectors(embed, iter([{"text": ["1", "2"], "label": [0, 1]}, {"image": [3]}])).tolist() == [
        [1, 1],
        [2, 1],
        [3, 1],
    ]
    assert row_vectors(embed, "7").tolist() == [7, 1]
    with pytest.raises(UserError, match=r"rows of .'audio'. have neither image nor text"):
        row_vectors(embed, [{"audio": 1}])


def test_cosines_by_hand():
    a, b = [[3.0, 4.0], [0.0, 2.0]], np.array([[4.0, 3.0], [1.0, 0.0]])
    torch.testing.assert_close(cosine_scores(a, b), torch.tensor([[0.96, 0.6], [0.6, 0.0]]))
    torch.testing.assert_close(cosine_scores(a, b, pairwise=True), torch.tensor([0.96, 0.0]))


def test_encode_gives_what_embed_gives(model):
    images = colours(3)
    vectors = model.encode([*TEXTS[:2], images[0], {"image": images[1], "text": TEXTS[2]}])
    own = model.embed(images, TEXTS)
    expected = torch.stack([own.texts[0], own.texts[1], own.images[0], own.images[1] + own.texts[2]])
    torch.testing.assert_close(torch.from_numpy(vectors), expected)
    assert model.encode(TEXTS[0], truncate_dim=4, convert_to_tensor=True).shape == (4,)


@THEIRS
def test_sentence_transformers_retrieval_evaluator(model):
    evaluation = pytest.importorskip("sentence_transformers.sentence_transformer.evaluation")
    images = colours(6)
    queries = {f"q{k}": text for k, text in enumerate(TEXTS)}
    corpus = {f"d{k}": image for k, image in enumerate(images)}
    relevant = {f"q{k}": {f"d{k}"} for k in range(4)}
    evaluator = evaluation.InformationRetrievalEvaluator(
        queries, corpus, relevant, mrr_at_k=[6], accuracy_at_k=[1, 3], name="mine", write_csv=False
    )
    scores = evaluator(model)
    own = model.embed(images, TEXTS)
    order = (own.texts @ own.images.T).argsort(dim=1, descending=True)
    ranks = [order[k].tolist().index(k) for k in range(4)]
    assert scores["mine_cosine_accuracy@3"] == pytest.approx(sum(rank < 3 for rank in ranks) / 4)
    assert scores["mine_cosine_mrr@6"] == pytest.approx(sum(1 / (rank + 1) for rank in ranks) / 4)
    assert model.model_card_data.metrics["mine"] == scores


@THEIRS
def test_sentence_transformers_similarity_evaluator(model):
    evaluation = pytest.importorskip("sentence_transformers.sentence_transformer.evaluation")
    from scipy.stats import spearmanr

    first, second, gold = TEXTS, TEXTS[1:] + TEXTS[:1], [0.1, 0.9, 0.4, 0.3]
    scores = evaluation.EmbeddingSimilarityEvaluator(first, second, gold, name="sts", write_csv=False)(model)
    pairs = F.cosine_similarity(model.embed(texts=first).texts, model.embed(texts=second).texts)
    assert scores["sts_spearman_cosine"] == pytest.approx(spearmanr(pairs.numpy(), gold).statistic)


@THEIRS
@pytest.mark.parametrize("way", ["t2i", "i2t"])
def test_mteb_retrieval_task_made_here(model, way, tmp_path):
    mteb = pytest.importorskip("mteb")
    datasets = pytest.importorskip("datasets")
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    images = colours(4)
    sides = {"text": TEXTS, "image": images}
    asked, stored = ("text", "image") if way == "t2i" else ("image", "text")

    class Mine(AbsTaskRetrieval):
        metadata = TaskMetadata(**about("Any2AnyRetrieval", f"Mine{way.upper()}", "ndcg_at_10", way))

        def load_data(self, **_):
            def rows(name, start):
                ids = [f"{start}{k}" for k in range(4)]
                return datasets.Dataset.from_dict({"id": ids, name: sides[name]})

            relevant = {f"q{k}": {f"d{k}": 1} for k in range(4)}
            split = {
                "queries": rows(asked, "q"),
                "corpus": rows(stored, "d"),
                "relevant_docs": relevant,
                "top_ranked": None,
            }
            self.dataset, self.data_loaded = {"default": {"test": split}}, True

    result = mteb.evaluate(model, Mine(), cache=mteb.ResultCache(tmp_path))
    own = model.embed(images, TEXTS)
    scores = own.texts @ own.images.T if way == "t2i" else own.images @ own.texts.T
    ranks = [scores[k].argsort(descending=True).tolist().index(k) for k in range(4)]
    (task,) = result.task_results
    expected = sum(1 / np.log2(rank + 2) for rank in ranks) / 4
    assert task.scores["test"][0]["ndcg_at_10"] == pytest.approx(expected, abs=1e-4)


@THEIRS
def test_mteb_zero_shot_task_made_here(model, tmp_path):
    mteb = pytest.importorskip("mteb")
    datasets = pytest.importorskip("datasets")
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.abstasks.zeroshot_classification import AbsTaskZeroShotClassification

    images, labels = colours(6), [0, 1, 2, 3, 0, 1]

    class Mine(AbsTaskZeroShotClassification):
        metadata = TaskMetadata(**about("ZeroShotClassification", "MineZeroShot", "accuracy", "i2t"))

        def load_data(self, **_):
            rows = datasets.Dataset.from_dict({"image": images, "label": labels})
            self.dataset, self.data_loaded = datasets.DatasetDict({"test": rows}), True

        def get_candidate_labels(self):
            return TEXTS

    (task,) = mteb.evaluate(model, Mine(), cache=mteb.ResultCache(tmp_path)).task_results
    own = model.embed(images, TEXTS)
    right = ((own.images @ own.texts.T).argmax(1) == torch.tensor(labels)).float().mean()
    assert task.scores["test"][0]["accuracy"] == pytest.approx(float(right))


def about(kind: str, name: str, score: str, way: str) -> dict:
    """The metadata of a task of mteb's that nobody downloads."""
    empty = ("reference", "date", "domains", "task_subtypes", "license", "annotations_creators", "dialect")
    empty += ("sample_creation", "bibtex_citation")
    told = {"dataset": {"path": "local", "revision": "1"}, "description": "made here", "eval_langs": ["eng-Latn"]}
    told |= {"type": kind, "name": name, "main_score": score, "category": way, "eval_splits": ["test"]}
    return dict.fromkeys(empty) | told | {"modalities": ["image", "text"], "prompt": "Find it."}


@THEIRS
@pytest.mark.parametrize("size", ["clip-small", "chinese-clip-small"])
def test_sentence_transformers_loads_an_exported_run(size, tmp_path):
    package = pytest.importorskip("sentence_transformers")
    few = "model.image.side=32 model.image.layers=1 model.text.layers=1 train.batch_size=8 data.workers=0"
    few += " model.image.shorter_side=32" if size == "clip-small" else ""
    words = f"train clip --corpus scenes:count=24,side=32 --out {tmp_path / 'run'} --size {size} --steps 1 --set {few}"
    assert cli.main(words.split()) == 0
    assert cli.main(["export", str(tmp_path / "run"), "--to", "hf", "--out", str(tmp_path / "out")]) == 0
    theirs, own = (
        package.SentenceTransformer(str(tmp_path / "out")),
        tuwen.load(tmp_path / "run").embed(colours(3), TEXTS),
    )
    texts = torch.from_numpy(theirs.encode(TEXTS, normalize_embeddings=True))
    torch.testing.assert_close(texts, own.texts, rtol=1e-5, atol=1e-5)
    pictures = torch.from_numpy(theirs.encode(colours(3), normalize_embeddings=True))
    torch.testing.assert_close(pictures, own.images, rtol=0, atol=1e-3)  # they resize with torchvision's or Pillow's
