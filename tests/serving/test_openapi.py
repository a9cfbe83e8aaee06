"""openapi.json is what the routes and the readers of bodies are."""

import pytest

from gpt_neo.serving.chat import UNSUPPORTED_IN_CHATS, parse_chat
from gpt_neo.serving.requests import UNSUPPORTED_IN_COMPLETIONS, RequestError, Served, parse_completion

PAGE = {"/", "/page.css", "/page.js", "/attention.js"}


class Asked(dict):
    """A body that notes which fields are looked at."""

    def __init__(self, *args):
        super().__init__(*args)
        self.seen = set()

    def get(self, key, default=None):
        self.seen.add(key)
        return super().get(key, default)


@pytest.fixture(scope="module")
def described(server):
    status, _, found = server.fetch("/openapi.json")
    assert status == 200
    return found


def test_every_route_is_described(server, described):
    routes = {(route.path.replace(":path", ""), m) for route in server.app.app().routes for m in route.methods}
    described = {(path, method.upper()) for path, methods in described["paths"].items() for method in methods}
    assert {(path, method) for path, method in routes if method != "HEAD" and path not in PAGE} == described


@pytest.mark.parametrize(
    "schema, parse, refused, least",
    [
        ("Completion", parse_completion, {*UNSUPPORTED_IN_COMPLETIONS, "suffix"}, {"prompt": "a"}),
        (
            "Chat",
            parse_chat,
            set(UNSUPPORTED_IN_CHATS),
            {"messages": [{"role": "user", "content": "a"}], "logprobs": True},
        ),
    ],
)
def test_every_field_is_described_with_its_bounds_and_default(model, described, schema, parse, refused, least):
    served = Served("small", model.tokenizer, model.config.n_vocab, 160, 0)
    body = Asked(least)
    plain = parse(body, served)
    fields = described["components"]["schemas"][schema]["properties"]
    assert set(fields) == body.seen - refused
    for name, field in fields.items():
        if "default" in field and name not in least:  # the same as leaving it out
            assert parse({"seed": 1, **least, name: field["default"]}, served) == parse({"seed": 1, **least}, served)
        outside = [field[key] + step for key, step in (("minimum", -1), ("maximum", 1e-3)) if key in field]
        for value in outside:
            with pytest.raises(RequestError, match=name):
                parse({**least, name: value}, served)
    assert plain.n == 1
