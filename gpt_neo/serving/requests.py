"""Reading a request: every field checked, what was given and what is allowed in the refusal."""

from __future__ import annotations

import dataclasses
import json
import secrets
from typing import Any, Optional

from gpt_neo.dataprep.templates import PLAIN, ChatTemplate
from gpt_neo.errors import DataError, counted
from gpt_neo.sampling.filters import SampleOptions
from gpt_neo.serving.token_choice import Adjustments
from gpt_neo.tokenizer import Tokenizer

MAX_STOPS = 16
MAX_LOGPROBS = 20
LARGEST = 2**31 - 1  # whole number where the model sets the limit
# Sampling fields of the API, of vLLM and of llama.cpp that are not honoured, and the values that change nothing.
UNSUPPORTED: dict[str, tuple] = {
    "length_penalty": (1,),
    "use_beam_search": (False,),
    "ignore_eos": (False,),
    "bad_words": ([],),
    "skip_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "allowed_token_ids": ([],),
    "prompt_logprobs": (0,),
    "truncate_prompt_tokens": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
    "response_format": ({"type": "text"},),
    "grammar": ("",),
    "mirostat": (0,),
    "typical_p": (1,),
    "tfs_z": (1,),
    "repeat_penalty": (1,),
    "dry_multiplier": (0,),
    "xtc_probability": (0,),
    "n_predict": (),
    # of vLLM and llama.cpp, too
    "structural_tag": (),
    "json_schema": ({},),
    "logits_processors": ([],),
    "prompt_embeds": (),
    "samplers": (),
    "dynatemp_range": (0,),
    "top_n_sigma": (-1, 0),
    "min_keep": (0,),
    "n_probs": (0,),
    # of transformers, and of servers that take its words
    "max_new_tokens": (),
    "do_sample": (True,),
    "num_beams": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "top_a": (0,),
    "tfs": (1,),
    "smoothing_factor": (0,),
    "penalty_alpha": (0,),
    "guidance_scale": (1,),
    "negative_prompt": ("",),
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
}
# What says the same here.
INSTEAD = {
    **dict.fromkeys(("n_predict", "max_new_tokens", "max_completion_tokens"), "max_tokens"),
    "repeat_penalty": "repetition_penalty",
    "n_probs": "logprobs",
    "suppress_tokens": "logit_bias",
    "do_sample": "temperature 0",
}
UNSUPPORTED_IN_COMPLETIONS: dict[str, tuple] = {**UNSUPPORTED, "max_completion_tokens": ()}


class RequestError(Exception):
    """A request that is not answered: an HTTP status from 400 to 499, a message and the field it is about."""

    def __init__(
        self, message: str, field: Optional[str] = None, status: int = 400, code: Optional[str] = None
    ) -> None:
        super().__init__(message)
        self.message, self.field, self.status, self.code = message, field, status, code


@dataclasses.dataclass(frozen=True)
class Served:
    """What the requests are held against.

    length: tokens that prompt and answer may have together. sequences: most answers of one request. special: whether
    the names of special tokens stand for these in prompts. chat: how messages become a prompt, None where they cannot,
    for the reason no_chat. turn_ends: ids that end an answer of a chat, beside the end of text.
    """

    name: str
    tokenizer: Tokenizer
    n_vocab: int
    length: int
    eos_id: Optional[int]
    sequences: int = 64
    special: bool = False
    chat: Optional[ChatTemplate] = PLAIN
    no_chat: str = ""
    turn_ends: tuple = ()

    @property
    def n_ids(self) -> int:
        """Ids that may be drawn: those of table and tokenizer both, where the table is padded."""
        return min(self.n_vocab, self.tokenizer.n_vocab)

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of a text, all of which the model has; `special` as in the class."""
        ids = (self.tokenizer.encode_special if special or self.special else self.tokenizer.encode)(text)
        if ids and max(ids) >= self.n_vocab:
            raise RequestError(f"the text has token id {max(ids)}; the model's n_vocab is {self.n_vocab}", "prompt")
        return ids


@dataclasses.dataclass(frozen=True)
class Completion:
    """A request for /v1/completions, or for /v1/chat/completions.

    texts: of the prompts as they were given, None for ids. token_ids: whether an answer has those of its tokens. ends:
    ids that end an answer beside the end of text.
    """

    prompts: list
    texts: list
    max_tokens: int
    options: SampleOptions
    adjustments: Adjustments
    n: int
    best_of: int
    stop: tuple
    ends: tuple
    logprobs: Optional[int]
    stream: bool
    include_usage: bool
    token_ids: bool
    echo: bool = False
    chat: bool = False


def parse_json(body: bytes) -> dict:
    """The object in a body.

    Raises:
      RequestError: it is none.
    """

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON number")

    try:
        found = json.loads(body.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON in UTF-8: {error}") from error
    if not isinstance(found, dict):
        raise RequestError(f"the body is a JSON {type(found).__name__}; expected an object")
    return found


def shown(value: Any) -> str:
    """A value for a message, cut short."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def number(body: dict, field: str, default: Any, low: float, high: float, whole: bool = False) -> Any:
    """A number in low .. high; null is the default."""
    value = body.get(field)
    if value is None:
        return default
    kinds = (int,) if whole else (int, float)
    if isinstance(value, float) and whole and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        low_text, high_text = (str(end) if whole else f"{end:g}" for end in (low, high))
        raise RequestError(f"{field} is {shown(value)}; expected {kind} from {low_text} to {high_text}", field)
    return value if whole else float(value)


def flag(body: dict, field: str) -> bool:
    """True or false; null is false."""
    value = body.get(field)
    if value is not None and not isinstance(value, bool):
        raise RequestError(f"{field} is {shown(value)}; expected true or false", field)
    return bool(value)


def parse_completion(body: dict, served: Served) -> Completion:
    """Read the body of /v1/completions; fields that change no answer are left alone.

    Raises:
      RequestError: a field is wrong, or the request is too long.
    """
    check_model(body, served)
    if body.get("suffix"):
        raise RequestError("suffix is not supported: the model writes from left to right", "suffix")
    refuse_unsupported(body, UNSUPPORTED_IN_COMPLETIONS)
    prompts, texts = parse_prompts(body, served)
    echo = flag(body, "echo")
    max_tokens = number(body, "max_tokens", 16, 0, LARGEST, whole=True)
    if max_tokens == 0 and not echo:
        raise RequestError("max_tokens is 0; expected at least 1, unless echo is true", "max_tokens")
    check_length(max(map(len, prompts)), max_tokens, served)
    n = number(body, "n", 1, 1, served.sequences, whole=True)
    best_of = number(body, "best_of", n, 1, served.sequences, whole=True)
    if best_of < n:
        raise RequestError(f"best_of is {best_of}; expected at least n, which is {n}", "best_of")
    if best_of > n and flag(body, "stream"):
        raise RequestError(
            f"best_of is {best_of} and n {n}: what is best is known at the end, so it has no stream", "best_of"
        )
    if len(prompts) * best_of > served.sequences:
        raise RequestError(
            f"{len(prompts)} prompts times best_of {best_of} are more than {served.sequences} answers", "best_of"
        )
    return Completion(
        prompts, texts, n=n, best_of=best_of, logprobs=parse_logprobs(body), echo=echo, **how(body, served, max_tokens)
    )


def how(body: dict, served: Served, max_tokens: int) -> dict:
    """Fields of a `Completion` that completions and chats read alike."""
    stream_options = body.get("stream_options")
    if stream_options is not None and not isinstance(stream_options, dict):
        raise RequestError(f"stream_options is {shown(stream_options)}; expected an object", "stream_options")
    return {
        "max_tokens": max_tokens,
        "options": dataclasses.replace(parse_options(body), n_ids=served.n_ids),
        "adjustments": parse_adjustments(body, served, max_tokens),
        "stop": parse_stop(body),
        "ends": tuple(checked_ids(body.get("stop_token_ids") or [], "stop_token_ids", served.n_vocab)),
        "stream": flag(body, "stream"),
        "include_usage": flag(stream_options or {}, "include_usage"),
        "token_ids": flag(body, "return_token_ids"),
    }


def check_length(prompt: int, max_tokens: int, served: Served) -> None:
    """Prompt and answer have to fit together."""
    if prompt + max_tokens > served.length:
        raise RequestError(
            f"the prompt has {counted(prompt, 'token')} and max_tokens is {max_tokens}, {prompt + max_tokens} "
            f"together; the model's length is {served.length}",
            "max_tokens",
            code="context_length_exceeded",
        )


def refuse_unsupported(body: dict, fields: dict) -> None:
    """Refuse, by name, fields that would change the answer and are not honoured here.

    Raises:
      RequestError: one is given, with another value than the one that changes nothing.
    """
    for field, idle in fields.items():
        value = body.get(field)
        greedy = field == "do_sample" and body.get("temperature") == 0  # the same, said twice
        if value is not None and value not in idle and not greedy:
            instead = f"; {INSTEAD[field]} says it here" if field in INSTEAD else ""
            raise RequestError(
                f"{field} is not supported: this server would answer as if it was not given{instead}", field
            )


def check_model(body: dict, served: Served) -> None:
    """The model asked for, if any, has to be the one that is here."""
    name = body.get("model")
    if name is not None and not isinstance(name, str):
        raise RequestError(f"model is {shown(name)}; expected {served.name!r}", "model")
    if name is not None and name != served.name:
        raise RequestError(
            f"model {shown(name)} is not here; this server has {served.name!r}", "model", 404, "model_not_found"
        )


def parse_options(body: dict) -> SampleOptions:
    """How tokens are drawn; without a seed by a new one."""
    seed = body.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or abs(seed) >= 2**63):
        raise RequestError(f"seed is {shown(seed)}; expected a whole number of 64 bits", "seed")
    top_p = number(body, "top_p", 1.0, 0, 1)
    if top_p == 0:
        raise RequestError("top_p is 0; expected more than 0 and at most 1", "top_p")
    top_k = number(body, "top_k", 0, -1, LARGEST, whole=True)
    return SampleOptions(
        temperature=number(body, "temperature", 1.0, 0, 100),
        top_k=max(top_k, 0),
        top_p=top_p,
        seed=secrets.randbits(63) if seed is None else seed % 2**64,
        min_p=number(body, "min_p", 0.0, 0, 1),
    )


def parse_adjustments(body: dict, served: Served, max_tokens: int) -> Adjustments:
    """What is done to the logits before."""
    repetition = number(body, "repetition_penalty", 1.0, 0, 100)
    if repetition == 0:
        raise RequestError("repetition_penalty is 0; expected more than 0", "repetition_penalty")
    return Adjustments(
        parse_bias(body, served),
        repetition,
        number(body, "presence_penalty", 0.0, -2, 2),
        number(body, "frequency_penalty", 0.0, -2, 2),
        number(body, "min_tokens", 0, 0, max_tokens, whole=True),
    )


def parse_bias(body: dict, served: Served) -> dict[int, float]:
    """`logit_bias`: null, or an object from token ids, which JSON has as strings, to numbers from -100 to 100."""
    given = body.get("logit_bias")
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise RequestError(f"logit_bias is {shown(given)}; expected an object from token ids to numbers", "logit_bias")
    found = {}
    for name, value in given.items():
        if not (name.isascii() and name.isdigit() and len(name) <= 20 and int(name) < served.n_vocab):
            allowed = f"expected ids from 0 to {served.n_vocab - 1}"
            raise RequestError(f"logit_bias has the token id {shown(name)}; {allowed}", "logit_bias")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not -100 <= value <= 100:
            raise RequestError(f"logit_bias of {name} is {shown(value)}; expected -100 to 100", "logit_bias")
        found[int(name)] = float(value)
    return found


def parse_stop(body: dict) -> tuple:
    """`stop`: null, a string, or a list of strings."""
    stop = body.get("stop")
    found = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(found, list) or not all(isinstance(s, str) and s for s in found) or len(found) > MAX_STOPS:
        allowed = f"a string or a list of at most {MAX_STOPS} strings, none empty"
        raise RequestError(f"stop is {shown(stop)}; expected {allowed}", "stop")
    return tuple(checked_text(text, "stop") for text in found)


def parse_logprobs(body: dict) -> Optional[int]:
    """`logprobs`: null, false or the number of alternatives; true is 1."""
    value = body.get("logprobs")
    if isinstance(value, bool):
        return 1 if value else None
    return number(body, "logprobs", None, 0, MAX_LOGPROBS, whole=True)


def parse_prompts(body: dict, served: Served) -> tuple[list, list]:
    """`prompt`: a string, a list of strings, token ids, or a list of lists of them; an empty one is the end of a text.

    Returns:
      (ids of each, text of each or None where ids were given)
    """
    given = body.get("prompt")
    if given is None or isinstance(given, str):
        given = [given or ""]
    if isinstance(given, list) and given and all(isinstance(x, (int, float)) for x in given):
        given = [given]
    if not isinstance(given, list) or not given:
        raise RequestError(f"prompt is {shown(given)}; expected a string, token ids, or a list of either", "prompt")
    if len(given) > served.sequences:
        raise RequestError(f"prompt has {len(given)} entries; expected at most {served.sequences}", "prompt")
    prompts, texts = [], []
    for entry in given:
        if isinstance(entry, str):
            ids = served.encode(checked_text(entry, "prompt"))
        elif isinstance(entry, list):
            ids = checked_ids(entry, "prompt", served.n_vocab)
        else:
            raise RequestError(f"prompt has {shown(entry)}; expected strings or lists of token ids", "prompt")
        if not ids:
            if served.eos_id is None:
                raise RequestError("prompt is empty, and there is no end-of-text token to begin with", "prompt")
            ids = [served.eos_id]
        prompts.append(ids)
        texts.append(entry if isinstance(entry, str) else None)
    return prompts, texts


def checked_text(text: Any, field: str) -> str:
    """A string of characters; JSON can also hold halves of them."""
    if not isinstance(text, str):
        raise RequestError(f"{field} is {shown(text)}; expected a string", field)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(f"{field} has a surrogate that is no character, at {error.start}", field) from error
    return text


def checked_ids(ids: Any, field: str, n_vocab: int) -> list[int]:
    """A list of token ids of the vocabulary."""
    if not isinstance(ids, list):
        raise RequestError(f"{field} is {shown(ids)}; expected a list of token ids", field)
    for i in ids:
        if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < n_vocab:
            raise RequestError(
                f"{field} has token id {shown(i)}; expected whole numbers from 0 to {n_vocab - 1}", field
            )
    return ids


def parse_picture(body: dict, served: Served, layers: list, n_head: list, longest: int) -> tuple[list, int, int]:
    """The body of /attention: (token ids, layer, head).

    Args:
      layers: numbers of the layers that attend. n_head: heads by layer. longest: most tokens.
    """
    ids = parse_text_or_ids(body, served)
    if not 1 <= len(ids) <= longest:
        raise RequestError(f"the text has {counted(len(ids), 'token')}; expected 1 to {longest}", "prompt")
    layer = number(body, "layer", layers[0] if layers else 0, 0, LARGEST, whole=True)
    if layer not in layers:
        raise RequestError(f"layer is {layer}; the layers that attend are {', '.join(map(str, layers))}", "layer")
    return ids, layer, number(body, "head", 0, 0, n_head[layer] - 1, whole=True)


def parse_text_or_ids(body: dict, served: Served) -> list[int]:
    """`tokens`, or the ids of `prompt`."""
    if body.get("tokens") is not None:
        return checked_ids(body["tokens"], "tokens", served.n_vocab)
    return served.encode(checked_text(body.get("prompt"), "prompt"))


def decode(ids: list[int], served: Served) -> str:
    """Text of ids.

    Raises:
      RequestError: the tokenizer lacks one.
    """
    try:
        return served.tokenizer.decode(ids)
    except DataError as error:
        raise RequestError(str(error), "tokens") from error
