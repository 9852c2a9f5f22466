"""Requests made up from the OpenAPI document: no failure, and no answer but those it describes."""

import contextlib

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode, checks

from tests.search.service.conftest import pictures
from tuwen.search.build import build_index
from tuwen.search.query import Searcher
from tuwen.search.service.app import create_app
from tuwen.search.service.keys import ApiKeys
from tuwen.search.service.settings import Settings


@pytest.fixture(scope="module")
def document(run, tmp_path_factory, key_file):
    index = build_index(run, pictures(8), tmp_path_factory.mktemp("openapi") / "index")
    return schemathesis.openapi.from_asgi(
        "/openapi.json", create_app(Searcher(index), Settings(), ApiKeys.read(key_file[0]))
    )


CHECKS = [checks.not_a_server_error, checks.status_code_conformance, checks.content_type_conformance]
CHECKS += [checks.response_schema_conformance, checks.response_headers_conformance, checks.ignored_auth]
ROUTES = [
    ("POST", "/search"),
    ("POST", "/search/image"),
    ("GET", "/similar"),
    ("POST", "/explain"),
    ("GET", "/index"),
    ("GET", "/pictures"),
]
ROUTES += [("GET", "/pictures"), ("POST", "/pictures"), ("DELETE", "/pictures"), ("GET", "/pictures/thumbnail")]
ROUTES += [("GET", "/metrics"), ("GET", "/health"), ("GET", "/ready")]


def test_every_route_is_tried(document):
    assert {(one.ok().method.upper(), one.ok().path) for one in document.get_all_operations()} == set(ROUTES)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["right", "wrong"])
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_no_request_of_the_document_fails(document, key_file, method, path, mode):
    operation = document[path][method]

    @settings(max_examples=8, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def try_out(case):
        case.call_and_validate(headers={"Authorization": f"Bearer {key_file[2]}"}, checks=CHECKS)

    with contextlib.suppress(Unsatisfiable):  # a route without parameters has no wrong requests
        try_out()
