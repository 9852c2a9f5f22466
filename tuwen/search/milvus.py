"""The first stage in a Milvus server or cluster, by URL. The record stays in Lance; Milvus holds ids and vectors.

What Milvus holds is compared with the record at every build, and mended: a process that was stopped between the two
leaves nothing wrong for long.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from tuwen.errors import UserError
from tuwen.search.columns import COLUMN, as_matrix
from tuwen.search.filters import Filters
from tuwen.search.filters import milvus as expression
from tuwen.search.nearest import from_record
from tuwen.search.record import IndexRecord, Snapshot

TOKEN = "TUWEN_MILVUS_TOKEN"  # environment variable
BATCH = 1000


class Milvus:
    """One collection. token: "user:password" or an API key; None: from the environment, else none.

    Raises:
        UserError: pymilvus is missing, or no server answers.
    """

    def __init__(self, url: str, collection: str, width: int, token: str | None = None):
        try:
            from pymilvus import MilvusClient
            from pymilvus.exceptions import MilvusException
        except ImportError:
            raise UserError("--milvus needs pymilvus: pip install 'tuwen[milvus]'") from None
        self.collection, self.width = collection, width
        try:
            self.client = MilvusClient(uri=url, token=token or os.environ.get(TOKEN, ""), timeout=60)
            if not self.client.has_collection(collection):
                self._create()
            self.client.load_collection(collection)
        except MilvusException as error:
            raise UserError(f"{url}: no Milvus server that lets us in: {error.message}") from None

    def _create(self) -> None:
        from pymilvus import DataType

        schema = self.client.create_schema(auto_id=False)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=2048)
        schema.add_field("mark", DataType.VARCHAR, max_length=64)
        schema.add_field("columns", DataType.JSON)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self.width)
        index = self.client.prepare_index_params()
        index.add_index("vector", index_type="HNSW", metric_type="IP", params={"M": 24, "efConstruction": 200})
        self.client.create_collection(self.collection, schema=schema, index_params=index, consistency_level="Strong")

    def sync(self, record: IndexRecord) -> dict[str, int]:
        """Makes the collection hold what the record does; {"put", "removed"}: entries that were changed."""
        dataset = record.dataset()
        table = dataset.to_table(columns=["id", "hash", "digest"])
        names, hashes, digests = (table[name].to_pylist() for name in ("id", "hash", "digest"))
        right = {name: content + table for name, content, table in zip(names, hashes, digests, strict=True)}
        marks = dict(self._marks())
        stale = [name for name in marks if name not in right]
        wrong = [place for place, name in enumerate(names) if marks.get(name) != right[name]]
        self.remove(stale)
        self._put(dataset, wrong)
        return {"put": len(wrong), "removed": len(stale)}

    def put(self, snapshot: Snapshot, ids: Sequence[str]) -> None:
        """Takes over the record's entries of these ids, if it has them."""
        for start in range(0, len(ids), BATCH):
            self._put(snapshot.dataset, sorted(snapshot.among(ids[start : start + BATCH]).values()))

    def _put(self, dataset: Any, positions: Sequence[int]) -> None:
        fields = [name for name in dataset.schema.names if name.startswith(COLUMN)]
        for start in range(0, len(positions), BATCH):
            rows = dataset.take(positions[start : start + BATCH], columns=["id", "hash", "digest", "vector", *fields])
            vectors = as_matrix(rows["vector"]).tolist()
            entries = [
                {
                    "id": row["id"],
                    "mark": row["hash"] + row["digest"],
                    "columns": {name: row[name] for name in fields if row[name] is not None},
                    "vector": vector,
                }
                for row, vector in zip(rows.drop_columns(["vector"]).to_pylist(), vectors, strict=True)
            ]
            self.client.upsert(self.collection, entries)

    def remove(self, ids: Sequence[str]) -> None:
        for start in range(0, len(ids), BATCH):
            self.client.delete(self.collection, ids=list(ids[start : start + BATCH]))

    def _marks(self) -> Iterable[tuple[str, str]]:
        """(id, mark) of all entries."""
        pages = self.client.query_iterator(self.collection, BATCH, output_fields=["id", "mark"], filter="")
        try:
            while page := pages.next():
                yield from ((row["id"], row["mark"]) for row in page)
        finally:
            pages.close()

    def nearest(
        self, snapshot: Snapshot, queries: Tensor, k: int, filters: Filters | None, columns: Mapping[str, str]
    ) -> list[tuple[Tensor, Tensor]]:
        """(positions [<= k], scores) for each query [Q, D], best first; true scores, but some may be missed.

        What this process wrote is found at once, what others wrote in a moment: to be sure of that too, Milvus would
        let every search wait for its next tick, some 200 ms.
        """
        condition = expression(filters, columns)
        options: dict[str, Any] = {"search_params": {"params": {"ef": max(64, 2 * k)}}, "consistency_level": "Session"}
        answers = self.client.search(self.collection, data=queries.tolist(), limit=k, filter=condition, **options)
        named = [[hit["id"] for hit in hits] for hits in answers]
        return _exactly(snapshot, queries, named)


def _exactly(snapshot: Snapshot, queries: Tensor, named: Sequence[Sequence[str]]) -> list[tuple[Tensor, Tensor]]:
    """Positions and scores of what a server named for each query, best first.

    What the record no longer has is passed over.
    """
    places = snapshot.among(list(dict.fromkeys(picture for ids in named for picture in ids)))
    near = [np.array(sorted(places[i] for i in ids if i in places), dtype=np.int64) for ids in named]
    return from_record(snapshot, queries, near)
