"""The application: routes, page, guard and the form of refusals, put together."""

import contextlib
import mimetypes
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser

from tuwen.errors import UserError
from tuwen.search.query import Searcher
from tuwen.search.record import Unusable
from tuwen.search.service import log, routes
from tuwen.search.service.guard import Guard
from tuwen.search.service.keys import ApiKeys
from tuwen.search.service.service import Service
from tuwen.search.service.settings import Settings
from tuwen.search.service.work import Full

PAGE = Path(__file__).parent.parent / "page"


def create_app(searcher: Searcher, settings: Settings, keys: ApiKeys | None) -> FastAPI:
    """The ASGI application of a searcher; `app.state.service` is what its routes share.

    keys: None only where nobody but this machine can reach it (`settings.refuse_open_service`).
    """
    service = Service(searcher, settings, keys)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI):
        async with service.running():
            yield

    # without FastAPI's own pages of documentation, which load scripts from elsewhere: /docs is docs.html of the page
    app = FastAPI(title="tuwen", version=version("tuwen"), docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.service = service
    for router in (routes.public, routes.read, routes.write):
        app.include_router(router)
    for path in sorted(PAGE.iterdir()):
        address = {"index.html": "/", "docs.html": "/docs"}.get(path.name, f"/{path.name}")
        app.add_api_route(address, _file(path), methods=["GET"], include_in_schema=False)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(UserError, _mistaken)
    app.add_exception_handler(Unusable, _unusable)
    app.add_exception_handler(Full, _full)
    app.add_middleware(
        Guard, limits=settings.limits, metrics=service.metrics, local=keys is None, requests=settings.requests
    )
    MultiPartParser.spool_max_size = settings.limits.upload  # forms stay in memory: no request writes a file
    return app


def _file(path: Path) -> Callable[[], Response]:
    """A route that gives a file of the page, read here and now: no address a client asks for becomes a path."""
    data, kind = path.read_bytes(), mimetypes.guess_type(path.name)[0]
    return lambda: Response(data, media_type=kind, headers={"Cache-Control": "no-cache"})


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"detail": str(error.detail)}, error.status_code, error.headers)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return JSONResponse({"detail": routes.first_problem(error.errors())}, 422)


async def _mistaken(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 422)


async def _unusable(request: Request, error: Exception) -> JSONResponse:
    log.note_error("index unusable", error, reason=str(error))  # of files and disks: it quotes no request
    return JSONResponse({"detail": "the index cannot be read or written now; the service's log says why"}, 500)


async def _full(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": "too many requests wait; try again"}, 429, {"Retry-After": "1"})
