"""What is asked and answered over HTTP, with the examples of the OpenAPI document."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from tuwen.search.service.settings import RequestLimits

Value = str | bool | int | Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\w .:/-]+$")]

End = Annotated[float, Field(allow_inf_nan=False)] | str | None


class Range(BaseModel):
    """Numbers, or texts such as dates, from min to max; either may be left out."""

    model_config = ConfigDict(extra="forbid")
    min: End = None
    max: End = None


Filters = Annotated[
    dict[str, Value | Annotated[list[Value], Field(max_length=RequestLimits.values)] | Range],
    Field(
        description='only pictures whose column has this value, one of these, or lies in the range: "10..20", "10..", '
        '"..20" or {"min": 10, "max": 20}',
        max_length=RequestLimits.filters,
    ),
]
FILTER = f'give a value, a list of at most {RequestLimits.values} values, "10..20" or {{"min": 10, "max": 20}}'
Id = Annotated[str, Field(min_length=1, max_length=RequestLimits.id, description="of a picture, as the index names it")]
Text = Annotated[str, Field(min_length=1, description="in any language the model knows")]
Top = Annotated[int | None, Field(ge=1, le=RequestLimits.top, description="results wanted")]
Candidates = Annotated[
    int | None,
    Field(ge=0, le=RequestLimits.candidates, description="best of the first stage that are re-ranked; 0: none"),
]
Budget = Annotated[int | None, Field(ge=1, le=60_000, description="time for the search, its wait included")]

PICTURE = {"id": "birds/17.jpg", "texts": {"zh": ["一只红色的鸟"]}, "columns": {"category": "bird", "price": 12.5}}
RESULT = PICTURE | {"first": 0.71, "score": 1.64, "thumbnail": "pictures/thumbnail?id=birds%2F17.jpg"}


def example(value: Any) -> ConfigDict:
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [value]})


class TextSearch(BaseModel):
    """A search by text."""

    model_config = example({"text": "一只红色的鸟", "top": 5, "filters": {"category": "bird", "price": "10..20"}})
    text: Text
    top: Top = None
    candidates: Candidates = None
    budget_ms: Budget = None
    filters: Filters = {}


class FoundPicture(BaseModel):
    """A picture that was found."""

    model_config = example(RESULT)
    id: str
    texts: Mapping[str, Sequence[str]] = Field(description="by language")
    columns: Mapping[str, Any]
    first: float | None = Field(description="first-stage score: how near the vectors are; null in a list")
    score: float | None = Field(
        description="final score; of a picture that was not re-ranked, the first-stage score; null in a list"
    )
    thumbnail: str = Field(description="where its small picture is, relative to the service")


class Found(BaseModel):
    """The answer to a search."""

    model_config = example({"results": [RESULT], "reranked": 1, "complete": True, "unknown": [], "ms": 41.7})
    results: Sequence[FoundPicture] = Field(
        description="the re-ranked ones first, each kind in the order of its scores"
    )
    reranked: int = Field(description="how many of the results were re-ranked")
    complete: bool = Field(description="false: time ran out before all candidates were re-ranked")
    unknown: Sequence[str] = Field(description="words of the query that the model's vocabulary does not have")
    ms: float = Field(description="time in the service, its wait included")


class Explain(BaseModel):
    """A text, and a picture of the index."""

    model_config = example({"id": "birds/17.jpg", "text": "一只红色的鸟"})
    id: Id
    text: Text


class WordMap(BaseModel):
    """Where in the picture a word matched."""

    word: str
    map: Sequence[Sequence[float]] = Field(description="rows from the top, each from the left; 1 where it matched most")


class Explained(BaseModel):
    """A heat map for each word."""

    model_config = example({"words": [{"word": "红色", "map": [[0.0, 0.2], [0.1, 1.0]]}], "part": [0.0, 0.0, 1.0, 1.0]})
    words: Sequence[WordMap]
    part: tuple[float, float, float, float] = Field(
        description="left, top, right and bottom edge of the part of the picture that the maps lie over, 0 to 1"
    )


class PictureRecord(BaseModel):
    """What is to be known of a picture that is added."""

    model_config = example(PICTURE)
    id: Id
    texts: dict[Name, Annotated[list[str], Field(max_length=RequestLimits.texts)]] = Field(
        {}, max_length=RequestLimits.columns, description="by language"
    )
    columns: dict[Name, Value | Annotated[list[str], Field(max_length=RequestLimits.tags)]] = Field(
        {}, max_length=RequestLimits.columns
    )

    def strings(self) -> list[str]:
        """Every text it has."""
        groups = [*self.texts.values(), *(v if isinstance(v, list) else [v] for v in self.columns.values())]
        return [text for texts in groups for text in texts if isinstance(text, str)]


class AddedPicture(BaseModel):
    """A picture that was sent, as the index has it now."""

    id: str = Field(description="of a duplicate, that of the same picture which is there already")
    state: str = Field(description="added, replaced, updated, unchanged or duplicate")


class Added(BaseModel):
    """What became of pictures that were sent, in no certain order."""

    model_config = example({"entries": [{"id": "birds/17.jpg", "state": "added"}], "pictures": 2001})
    entries: Sequence[AddedPicture]
    pictures: int = Field(description="in the index now")


class Deleted(BaseModel):
    """What became of pictures that were to go."""

    model_config = example({"deleted": 1, "pictures": 2000})
    deleted: int = Field(description="how many of them were there")
    pictures: int = Field(description="in the index now")


class Column(BaseModel):
    """What a column holds: for text, flags and tags its commonest values, for numbers and dates their ends."""

    kind: str = Field(description="text, date, number, flag or tags")
    values: Sequence[Value] = []
    min: float | str | None = None
    max: float | str | None = None


class About(BaseModel):
    """What the service searches."""

    model_config = example(
        {
            "pictures": 2000,
            "system": "r2d2",
            "codes": {"kind": "int8", "bytes": 16, "depth": 256, "recall": 0.97, "by": "texts", "rows": 2000},
            "second_stage": {"score": "fitted", "weight": 1.0},
            "columns": {
                "category": {"kind": "text", "values": ["bird", "cat"]},
                "price": {"kind": "number", "min": 1.5, "max": 99.0},
            },
        }
    )
    pictures: int
    system: str
    codes: Mapping[str, Any] | None = Field(description="of few bytes, searched first; null: whole vectors are")
    second_stage: Mapping[str, Any] | None = Field(description="how final scores are made; null: by the first stage")
    columns: Mapping[str, Column] = Field(description="that can be filtered by")


class Alive(BaseModel):
    """Of a service that lives."""

    status: str = "ok"


class Problem(BaseModel):
    """Why a request was refused."""

    model_config = example({"detail": "text: at most 1,000 characters"})
    detail: str


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Those answers of a route that are no success, for the OpenAPI document."""
    descriptions = {
        400: "A body that cannot be read",
        401: "No key, or a wrong one",
        403: "The key may not do this",
        404: "No such picture",
        408: "The body took too long",
        409: "Another process is writing the index; try again",
        413: "More bytes or pixels than the service takes",
        422: "A value that cannot be; the detail says which",
        429: "Too many searches wait; try again",
        500: "The service failed",
        503: "Not ready, or about to stop",
    }
    return {status: {"model": Problem, "description": descriptions[status]} for status in statuses}
