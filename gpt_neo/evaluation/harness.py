"""The model of this project as lm-evaluation-harness sees one. Needs the extra `harness`.

Registered under the name `gpt_neo` once this module is imported; newer versions of the harness find it by the entry
point `lm_eval.models`, and any version takes an instance: lm_eval.simple_evaluate(model=GptNeoLM(model="demo"), ...).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from typing import Any, Optional, Union

import lm_eval.models  # noqa: F401  (those of the harness: it looks for them only while no model is registered)
from lm_eval.api.model import LM
from lm_eval.api.registry import MODEL_REGISTRY, register_model
from tqdm import tqdm

from gpt_neo.errors import ConfigError
from gpt_neo.evaluation.batches import BatchScorer, check_scorable
from gpt_neo.evaluation.encoding import encode_context, encode_pair, needed
from gpt_neo.evaluation.generation import Prompt, generate
from gpt_neo.evaluation.model import FoundModel, find_model, read_model
from gpt_neo.evaluation.windows import Request, rolling
from gpt_neo.fast.choice import choose
from gpt_neo.sampling.batches import BatchSampler, fit_prompt
from gpt_neo.sampling.filters import SampleOptions
from gpt_neo.storage import tensorflow as files

NAME = "gpt_neo"
LOG = logging.getLogger("gpt_neo")
SAMPLED_AT_ONCE = 8
# Spellings of the most new tokens; the first that a task gives counts, as in the harness.
MOST_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
GENERATION = ("until", "do_sample", "temperature", "top_k", "top_p", "min_p", "seed", *MOST_TOKENS)
# Options of transformers' generate that tasks of the harness give, and the value that changes nothing.
IDLE = {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1, "length_penalty": 1, "use_cache": True}


class GptNeoLM(LM):
    """A checkpoint as a language model of the harness, in this process.

    Args:
      model: config (name or path), or a run folder with config.json.
      checkpoint: latest (the default), best, or a step.
      batch_size: rows scored or sampled at once; "auto" and None choose.
      max_length: ids read at once, at most n_ctx, which it is when absent.
      max_gen_toks: most new tokens where a task does not say.
      seed: of sampling, where a task asks for it.
      overrides: `key=value` in place of what the config says, several separated by `;`.
      backend: auto, openvino or tensorflow, see `fast.choice.choose`.
      dtype: int8 or int4, for OpenVINO; other types are the key precision of `overrides`.
      device, max_batch_size: what the harness hands every model; the former has to be absent or cpu.

    Raises:
      ConfigError, CheckpointError, DataError: the model, or an argument, is wrong.
    """

    def __init__(
        self,
        model: str,
        checkpoint: Optional[Union[str, int]] = None,
        batch_size: Optional[Union[str, int]] = None,
        max_length: Optional[int] = None,
        max_gen_toks: int = 256,
        seed: int = 0,
        overrides: str = "",
        backend: str = "auto",
        dtype: Optional[str] = None,
        device: Optional[str] = None,
        max_batch_size: Optional[int] = None,
    ) -> None:
        super().__init__()
        which = None if checkpoint is None else str(checkpoint)
        self.found = find_model(model, which, [part for part in overrides.split(";") if part])
        check_scorable(self.found.run.model)
        if device not in (None, "cpu"):
            raise ConfigError(f"device is {device!r}: the model runs where TensorFlow puts it; leave device out")
        self.rows = parse_batch_size(batch_size)
        self.max_length = min(max_length or self.found.run.model.n_ctx, self.found.run.model.n_ctx)
        self.max_gen_toks, self.seed = max_gen_toks, seed
        self.tokens, self.prefix = self.found.tokenizer, self.found.prefix
        self.openvino, _ = choose(self.found.run.model, backend, dtype)
        self.dtype = dtype
        self._scorer: Optional[BatchScorer] = None
        self._sampler: Optional[BatchSampler] = None

    @property
    def scorer(self) -> BatchScorer:
        """The model ready to score, loaded when it is first asked for."""
        if self._scorer is None:
            begun = self._sampler is not None
            self.found, made = read_model(self.found, self.make_scorer, LOG.warning, begun)
            self._scorer = made
        return self._scorer

    def make_scorer(self, found: FoundModel) -> BatchScorer:
        """Load a model to score with."""
        model, path = found.run.model, found.checkpoint
        if self.openvino:
            from gpt_neo.evaluation.fast_scorer import FastScorer

            return FastScorer(model, path, self.dtype, self.rows, self.max_length)
        from gpt_neo.evaluation.scorer import Scorer

        return Scorer(model, path, batch_size=self.rows, max_length=self.max_length)

    @property
    def sampler(self) -> BatchSampler:
        """The model ready to sample, loaded when it is first asked for."""
        if self._sampler is None:
            begun = self._scorer is not None
            self.found, made = read_model(self.found, self.make_sampler, LOG.warning, begun)
            self._sampler = made
        return self._sampler

    def make_sampler(self, found: FoundModel) -> BatchSampler:
        """Load a model to sample with."""
        rows, model, path = self.rows or SAMPLED_AT_ONCE, found.run.model, found.checkpoint
        if self.openvino:
            from gpt_neo.fast.sampler import FastSampler

            return FastSampler(model, path, rows, self.max_length, self.dtype)
        from gpt_neo.runtime.predict_step import Sampler

        return Sampler(model, path, rows, length=self.max_length)

    @property
    def eot_token_id(self) -> Optional[int]:
        """Id of the end of a document, None where there is none."""
        return self.prefix

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer by its vocabulary, for the harness's caches."""
        return f"{NAME}-{self.tokens.fingerprint[:16]}"

    @property
    def identity(self) -> str:
        """Another one for whatever may answer otherwise: weights, network, tokenizer, engine, type, length, seed."""
        weights = hashlib.sha256(files.read_bytes(f"{self.found.checkpoint}.index")).hexdigest()  # it has checksums
        network, tokenizer = dataclasses.asdict(self.found.run.model), self.tokens.backend.to_str()
        limits = [self.openvino, self.dtype, self.max_length, self.max_gen_toks, self.seed, self.prefix]
        told = json.dumps([weights, network, tokenizer, limits], sort_keys=True, default=str)
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def tok_encode(self, string: str, **options: Any) -> list[int]:
        """Ids of a text."""
        return self.tokens.encode(string)

    def tok_decode(self, tokens: Any, **options: Any) -> str:
        """Text of ids."""
        return self.tokens.decode(tokens)

    def get_model_info(self) -> dict:
        """What the harness writes beside its results."""
        return {
            "model_name": self.found.run.name,
            "model_dtype": self.found.run.model.precision,
            "model_step": self.found.step,
        }

    def loglikelihood(self, requests: list, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability, whether greedy decoding gives it) of each (context, continuation), in order."""
        pairs = [request.args for request in requests]
        asked = [encode_pair(self.tokens, context, continuation, self.prefix) for context, continuation in pairs]
        return self.scored("loglikelihood", pairs, asked, lambda score: (score.total, score.is_greedy), disable_tqdm)

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole text, its first token predicted from the end of a document."""
        texts = [request.args for request in requests]
        asked = [rolling(self.tokens.encode(text), needed(self.prefix)) for (text,) in texts]
        return self.scored("loglikelihood_rolling", texts, asked, lambda score: score.total, disable_tqdm)

    def scored(self, kind: str, args: list, asked: list[Request], answer: Any, quiet: bool) -> list:
        """Answers in the order of the requests; each goes into the harness's cache as soon as it is there."""
        answers: list = [None] * len(asked)
        with tqdm(total=len(asked), desc=f"Running {kind} requests", disable=quiet) as bar:
            for number, score in self.scorer.scored(asked):
                answers[number] = answer(score)
                self.cache_hook.add_partial(kind, args[number], answers[number])
                bar.update()
        return answers

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        """What follows each context, up to a stop string, the end of the document or the most new tokens."""
        args = [request.args for request in requests]
        prompts = [self.prompt(context, dict(options)) for context, options in args]
        cut = sum(fit_prompt(p.tokens, self.max_length, p.options.max_tokens)[1] > 0 for p in prompts)
        if cut:
            LOG.warning("%d of %d contexts lose their beginnings: new tokens need the room", cut, len(prompts))
        texts: list = [None] * len(prompts)
        with tqdm(total=len(prompts), desc="Running generate_until requests", disable=disable_tqdm) as bar:
            for number, text in generate(self.sampler, self.tokens, prompts):
                texts[number] = text
                self.cache_hook.add_partial("generate_until", args[number], text)
                bar.update()
        return texts

    def prompt(self, context: str, options: dict) -> Prompt:
        """A request to generate; without do_sample and with temperature 0 the likeliest token is taken.

        Raises:
          ConfigError: an option that this model does not have, or a value that means nothing.
        """
        for name, value in options.items():
            if name in IDLE and value not in (None, IDLE[name]):
                raise ConfigError(f"generation_kwargs has {name!r}: {value!r}; this model has {IDLE[name]!r} alone")
            if name not in (*GENERATION, *IDLE):
                raise ConfigError(f"generation_kwargs has {name!r}; allowed: {', '.join(GENERATION)}")

        def said(name: str, default: float) -> float:
            return default if options.get(name) is None else options[name]

        stop = options.get("until") or ()
        samples = options.get("do_sample")
        temperature = float(said("temperature", 1.0 if samples else 0.0))
        most = next((options[name] for name in MOST_TOKENS if options.get(name) is not None), self.max_gen_toks)
        drawn = SampleOptions(
            max_tokens=int(most),
            temperature=0.0 if samples is False else temperature,
            top_k=int(said("top_k", 0)),
            top_p=float(said("top_p", 1.0)),
            seed=int(said("seed", self.seed)),
            eos_id=self.prefix,
            min_p=float(said("min_p", 0.0)),
        )
        words = (stop,) if isinstance(stop, str) else tuple(stop)
        return Prompt(encode_context(self.tokens, context, self.prefix), words, drawn)


def parse_batch_size(value: Optional[Union[str, int]]) -> Optional[int]:
    """Rows of a batch; None chooses.

    Raises:
      ConfigError: it is no positive whole number.
    """
    if value is None or str(value).startswith("auto"):
        return None
    if not str(value).isdigit() or int(value) < 1:
        raise ConfigError(f"batch_size is {value!r}; expected a whole number of at least 1, or auto")
    return int(value)


if NAME not in MODEL_REGISTRY:  # newer versions may have come here by the entry point, under that very name
    register_model(NAME)(GptNeoLM)
