"""The routes. A client sends texts, numbers and the bytes of pictures: never a path or an address to follow."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Form, Query, Request, Response, Security, UploadFile
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException

from tuwen.search.pictures import Picture, check_rows
from tuwen.search.query import Query as Asked
from tuwen.search.service import messages
from tuwen.search.service.messages import problems
from tuwen.search.service.metrics import TYPE
from tuwen.search.service.service import Service
from tuwen.search.service.settings import RequestLimits


def service_of(request: Request) -> Service:
    return request.app.state.service


def guarded(scope: str) -> APIRouter:
    """A router whose requests need a key of the scope; it is asked for before the body is read."""

    class Guarded(APIRoute):
        def get_route_handler(self):
            handler = super().get_route_handler()

            async def admitted(request: Request) -> Response:
                service_of(request).admit(request, scope)
                return await handler(request)

            return admitted

    bearer = HTTPBearer(auto_error=False, description=f"An API key that may {scope}, made by `tuwen key`")
    return APIRouter(route_class=Guarded, dependencies=[Security(bearer)], responses=problems(401, 403))


Here = Annotated[Service, Depends(service_of)]
Id = Annotated[str, Query(min_length=1, max_length=RequestLimits.id, examples=["birds/17.jpg"])]
JPEG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/jpeg": {}}}}
FILTERS, EXAMPLES = "as in /search, as JSON", ['{"category": "bird", "price": "10..20"}']
public, read, write = APIRouter(), guarded("read"), guarded("write")


@public.get("/health", responses=problems())
async def health() -> messages.Alive:
    """Whether the process lives."""
    return messages.Alive()


@public.get("/ready", responses=problems(503))
async def ready(service: Here) -> messages.Alive:
    """Whether it takes searches: not once it was told to stop, nor while its queue is full."""
    if service.draining or service.searches.full:
        raise HTTPException(503, "about to stop" if service.draining else "the queue is full")
    return messages.Alive()


@read.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(service: Here) -> Response:
    """Counts and times, for Prometheus."""
    return Response(service.metrics.text(), headers={"Content-Type": TYPE})


@read.get("/index")
def about(service: Here) -> messages.About:
    """What is searched, and by what it can be filtered."""
    index = service.searcher.index
    return messages.About.model_validate(
        {"pictures": len(index), "system": index.about["system"], "columns": service.columns()}
        | {"codes": index.about.get("codes") or None}
        | {"second_stage": index.predictor.score_rule() if service.searcher.reranks else None}
    )


@read.post("/search", responses=problems(400, 408, 413, 422, 429))
async def search(request: Request, service: Here, asked: messages.TextSearch) -> messages.Found:
    """Pictures for a text, the best first."""
    text = service.text(request, asked.text)
    options = {"top": asked.top, "candidates": asked.candidates, "budget_ms": asked.budget_ms}
    return await service.search(request, Asked(text=text), options | {"filters": _plain(asked.filters)})


@read.post("/search/image", responses=problems(400, 408, 413, 422, 429))
async def search_image(
    request: Request,
    service: Here,
    picture: Annotated[UploadFile, File(description="JPEG, PNG, GIF, WebP, BMP, TIFF, AVIF or JPEG 2000")],
    text: Annotated[str, Form(description="searched for together with the picture")] = "",
    top: Annotated[messages.Top, Form()] = None,
    candidates: Annotated[messages.Candidates, Form()] = None,
    budget_ms: Annotated[messages.Budget, Form()] = None,
    filters: Annotated[str, Form(description=FILTERS, examples=EXAMPLES)] = "{}",
) -> messages.Found:
    """Pictures like the one that is sent, or like it and for a text."""
    query_text = service.text(request, text) if text else None
    chosen = _parsed(messages.Filters, filters, "filters")
    pixels = await service.picture(await picture.read(), fitted=True)
    options = {"top": top, "candidates": candidates, "budget_ms": budget_ms, "filters": _plain(chosen)}
    return await service.search(request, Asked(text=query_text, pixels=pixels), options)


@read.get("/similar", responses=problems(404, 422, 429))
async def similar(
    request: Request,
    service: Here,
    id: Id,
    top: Annotated[messages.Top, Query()] = None,
    filters: Annotated[str, Query(description=FILTERS, examples=EXAMPLES)] = "{}",
) -> messages.Found:
    """Pictures like one of the index."""
    return await service.similar(request, id, top, _plain(_parsed(messages.Filters, filters, "filters")))


@read.get("/pictures", responses=problems(422, 429))
async def pictures(
    request: Request,
    service: Here,
    top: Annotated[messages.Top, Query()] = None,
    filters: Annotated[str, Query(description=FILTERS, examples=EXAMPLES)] = "{}",
) -> messages.Found:
    """Pictures of the index as they were put in, without scores."""
    return await service.browse(request, top, _plain(_parsed(messages.Filters, filters, "filters")))


@read.post("/explain", responses=problems(400, 404, 408, 413, 422, 429))
async def explain(request: Request, service: Here, asked: messages.Explain) -> messages.Explained:
    """Where in a picture of the index each word of a text matched."""
    return await service.explain(asked.id, service.text(request, asked.text))


@read.get("/pictures/thumbnail", name="thumbnail", response_class=Response, responses=JPEG | problems(404, 422))
def picture_thumbnail(service: Here, id: Id) -> Response:
    """A small JPEG of a picture of the index."""
    headers = {"Cache-Control": "private, max-age=300"}
    return Response(service.thumbnail(id), media_type="image/jpeg", headers=headers)


@write.post("/pictures", status_code=201, responses=problems(400, 408, 409, 413, 422, 429))
async def add(
    request: Request,
    service: Here,
    pictures: Annotated[list[UploadFile], File(description="as in /search/image")],
    records: Annotated[str, Form(description="JSON: a list of records, one for each picture in their order")],
) -> messages.Added:
    """Takes pictures in, all or none. One whose id is there already takes its place."""
    known = _parsed(list[messages.PictureRecord], records, "records")
    most = service.settings.limits.pictures
    if len(known) != len(pictures) or len(known) > most:
        raise HTTPException(
            422, f"{len(pictures)} pictures and {len(known)} records; give as many of both, at most {most}"
        )
    taken = []
    for place, (upload, record) in enumerate(zip(pictures, known, strict=True)):
        for text in record.strings():
            service.text(request, text, f"records.{place}")
        data = await upload.read()
        await service.picture(data, where=f"pictures.{place}")
        taken.append(Picture(data, record.id, record.texts, record.columns))
    check_rows(taken, service.searcher.index.columns())
    outcomes = await service.change(service.searcher.index.add, taken)
    for outcome in outcomes:
        if outcome.state == "broken":  # a column has become of another kind meanwhile
            raise HTTPException(409, f"{outcome.id}: {outcome.reason}; the pictures that have no fault were taken in")
    entries = [messages.AddedPicture(id=outcome.id, state=outcome.state) for outcome in outcomes]
    return messages.Added(entries=entries, pictures=len(service.searcher.index))


@write.delete("/pictures", responses=problems(409, 422, 429))
async def delete(
    service: Here, id: Annotated[list[str], Query(min_length=1, max_length=RequestLimits.deleted)]
) -> messages.Deleted:
    """Takes pictures out; ids that are not there are passed over."""
    gone = await service.change(service.searcher.index.remove, id)
    return messages.Deleted(deleted=gone, pictures=len(service.searcher.index))


def _parsed(kind: Any, text: str, where: str) -> Any:
    """The value that JSON in a form's field stands for."""
    try:
        return TypeAdapter(kind).validate_python(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise HTTPException(422, _detail(error, where)) from None


def _detail(error: Exception, where: str) -> str:
    if not isinstance(error, ValidationError):
        return f"{where}: is no JSON"
    return first_problem([first | {"loc": (where, *first["loc"])} for first in error.errors()[:1]])


def first_problem(errors: Any) -> str:
    """One line about what validation found first, without the value; about a filter, how it is written."""
    first = errors[0]
    parts = [str(part)[:64] for part in first["loc"] if part not in ("body", "query")]
    if parts[:1] == ["filters"] and len(parts) > 1:
        return f"filters.{parts[1]}: {messages.FILTER}"
    place = ".".join(parts)
    return f"{place}: {first['msg']}" if place else first["msg"]


def _plain(filters: Mapping[str, Any]) -> dict[str, Any]:
    """Filters as the searcher takes them."""
    ranges = {name: value for name, value in filters.items() if isinstance(value, messages.Range)}
    return dict(filters) | {name: value.model_dump(exclude_none=True) for name, value in ranges.items()}
