"""Scoring the examples of a task, and what comes of them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Callable, Optional

from gpt_neo.evaluation.batches import BatchScorer, Score
from gpt_neo.evaluation.encoding import encode_pair
from gpt_neo.evaluation.metrics import Outcome
from gpt_neo.evaluation.tasks import EvalTask, Example, examples_of, metrics_of
from gpt_neo.runtime.intervals import Interval
from gpt_neo.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Part:
    """Metrics over some examples, by name."""

    examples: int
    tokens: int
    metrics: dict[str, Interval]

    def as_json(self) -> dict:
        """Values, and the ends of their intervals, for a JSON line."""
        return {
            "examples": self.examples,
            "tokens": self.tokens,
            "metrics": {name: found.value for name, found in self.metrics.items()},
            "intervals": {name: [found.low, found.high] for name, found in self.metrics.items()},
        }


@dataclasses.dataclass(frozen=True)
class Result:
    """A task's metrics over all of its examples, and over those of each set of The Pile that the data names."""

    task: EvalTask
    overall: Part
    sets: dict[str, Part]

    def as_json(self) -> dict:
        """A JSON line."""
        sets = {"sets": {name: part.as_json() for name, part in self.sets.items()}} if self.sets else {}
        return {"task": self.task.name, "documents": list(self.task.documents), **self.overall.as_json(), **sets}


def run_task(
    task: EvalTask,
    scorer: BatchScorer,
    tokenizer: Tokenizer,
    prefix: Optional[int],
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Result:
    """Score a task.

    Args:
      prefix: id that stands before a text without context, the end of a document.
      tell: called after every batch with the ids scored so far, and all that are to be.

    Raises:
      ConfigError, DataError: the task or its documents are wrong, or ids do not fit the model.
    """
    examples = examples_of(task, tokenizer)
    requests = [encode_pair(tokenizer, e.context, e.continuation, prefix) for e in examples]
    outcomes = [outcome(e, score) for e, score in zip(examples, scorer.score(requests, tell))]
    names = sorted({o.set_name for o in outcomes if o.set_name is not None})
    return Result(
        task, part(task, outcomes), {name: part(task, [o for o in outcomes if o.set_name == name]) for name in names}
    )


def outcome(example: Example, score: Score) -> Outcome:
    """What is known of a scored example; words are what runs of white space separate."""
    text = example.measured
    return Outcome(
        nats=-score.total,
        tokens=len(score.logprobs),
        bytes=len(text.encode("utf-8")),
        characters=len(text),
        words=len(re.split(r"\s+", text)),
        greedy=score.is_greedy,
        set_name=example.set_name,
    )


def part(task: EvalTask, outcomes: Sequence[Outcome]) -> Part:
    """The metrics of a task over some outcomes."""
    found = {name: metric(outcomes) for name, metric in metrics_of(task).items()}
    return Part(len(outcomes), sum(o.tokens for o in outcomes), found)
