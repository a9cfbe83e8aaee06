"""Who comes next."""

import types

from gpt_neo.sampling.filters import SampleOptions
from gpt_neo.serving.engine import Engine, Sequence


def test_requests_of_few_rows_go_first_and_else_who_came_first():
    engine = Engine(None, None, None)
    made = [Sequence(i, [1], 0, 1, SampleOptions(), (), print, request=name) for i, name in enumerate("aaaabbc")]
    engine.waiting.extend(made)
    order = []
    while engine.waiting:
        found = engine.next_waiting()
        engine.rows[found.number] = types.SimpleNamespace(sequence=found)
        order.append(found.request)
    assert "".join(order) == "abcabaa"
