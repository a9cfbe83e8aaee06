"""What the server counts, in the words of Prometheus."""

from __future__ import annotations

import functools

import prometheus_client as prometheus

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        counter = functools.partial(prometheus.Counter, registry=self.registry)
        gauge = functools.partial(prometheus.Gauge, registry=self.registry)
        histogram = functools.partial(prometheus.Histogram, registry=self.registry, buckets=SECONDS)
        self.requests = counter("gpt_neo_requests", "Requests answered, by path and status.", ["path", "status"])
        self.seconds = histogram("gpt_neo_request_seconds", "From a completion's request to its last token.")
        self.first = histogram("gpt_neo_first_token_seconds", "From a completion's request to its first token.")
        self.cancelled = counter("gpt_neo_cancelled", "Completions that nobody waited for any more.")
        self.counters = {
            "prompt_tokens": counter("gpt_neo_prompt_tokens", "Tokens of prompts read."),
            "new_tokens": counter("gpt_neo_new_tokens", "Tokens made."),
            "steps": counter("gpt_neo_steps", "Steps of the batch."),
        }
        self.busy = gauge("gpt_neo_rows_busy", "Rows of the batch that are taken.")
        self.waiting = gauge("gpt_neo_waiting", "Answers that wait for a row.")

    def observe(self, name: str, amount: float) -> None:
        """Count what the engine tells of."""
        if name in self.counters:
            self.counters[name].inc(amount)

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return prometheus.generate_latest(self.registry)
