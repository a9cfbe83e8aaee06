"""Completions over HTTP, and a page to play with."""

from __future__ import annotations

import dataclasses
import os
import time
from typing import TYPE_CHECKING, Any, Optional

from gpt_neo.cli import quiet
from gpt_neo.cli.console import memory_text, model_text, note, say
from gpt_neo.cli.engine import OPENVINO, with_openvino
from gpt_neo.cli.job import Job, job_checkpoint, load_job, read_job_checkpoint
from gpt_neo.cli.options import API_KEY, BITS, DeviceOptions, Serve
from gpt_neo.errors import CheckpointError, ConfigError, DataError
from gpt_neo.storage.tensorflow import changed
from gpt_neo.system import how_to_install

if TYPE_CHECKING:
    from gpt_neo.checkpoint.folder import Found
    from gpt_neo.serving.requests import Served


def serve(options: Serve) -> int:
    """Load the model and serve it.

    Raises:
      ConfigError: a package is missing, or the address is open to all.
    """
    key = token_of(os.environ.get(API_KEY, ""))
    try:
        from gpt_neo.serving.run import is_loopback

        if not is_loopback(options.host) and not key:
            raise ConfigError(
                f"--host {options.host} is open to other machines: set a bearer token in {API_KEY}, or bind to "
                "127.0.0.1"
            )
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(f"serving needs the package {error.name}: {how_to_install('serve')}") from error
    job = load_job(options.model, DeviceOptions(gpu_ids=options.devices.gpu_ids), reads_only=True)
    found = job_checkpoint(job)
    quiet.silence(options.model.verbose, sampling=job.run.model.precision)
    return serve_job(job, options, found, key)


def token_of(text: str) -> Optional[str]:
    """The bearer token in an environment variable; None where that is empty.

    Raises:
      ConfigError: no client could send it: headers lose spaces around, and what else they carry differs by client.
    """
    if text != text.strip() or not all(" " <= letter <= "~" for letter in text):
        raise ConfigError(f"{API_KEY} has spaces around it, or other characters than those of ASCII that are seen")
    return text or None


def serve_job(job: Job, options: Serve, found: Found, key: Optional[str]) -> int:
    """Everything that needs TensorFlow."""
    from gpt_neo.config.estimate import sampling_memory
    from gpt_neo.inputs.tokenizers import run_tokenizer
    from gpt_neo.serving.app import Limits, Server
    from gpt_neo.serving.engine import Engine
    from gpt_neo.serving.metrics import Metrics
    from gpt_neo.serving.requests import Served
    from gpt_neo.serving.run import bind, run_server

    run = job.run
    tokenizer, eos = run_tokenizer(run, job.folder)
    listener = bind(options.host, options.port)
    say(model_text(run))
    say(memory_text(sampling_memory(run.model, options.rows, BITS.get(options.model.integers or ""))))
    began = time.monotonic()
    checkpoint, (decoder, created) = read_job_checkpoint(
        job, found, lambda path: (load_rows(job, options, path), created_at(path))
    )
    for line in decoder.notes:
        note(line)
    say(f"loaded    {checkpoint} in {time.monotonic() - began:.1f} s; {decoder.rows} rows of {decoder.length} tokens")
    metrics = Metrics()
    engine = Engine(decoder, tokenizer, eos, metrics.observe)
    served = with_chats(
        Served(run.name, tokenizer, run.model.n_vocab, decoder.length, eos, special=options.special), job, options
    )
    limits = Limits(body=options.max_body, seconds=options.timeout, waiting=options.max_waiting, key=key)
    server = Server(engine, served, limits, metrics, created=created)
    engine.begin()
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(
        f"serving   {run.name} at http://{shown}:{port} (page), http://{shown}:{port}/v1 (API)"
        + (", with a bearer token" if key else ""),
        flush=True,
    )
    run_server(server.app(), listener, options.drain)
    engine.close()
    print("stopped", flush=True)
    return 0


def with_chats(served: Served, job: Job, options: Serve) -> Served:
    """The same with the template of its chats: the one given, that of its tokenizer, or a plain form.

    Raises:
      DataError: the template that was given is none.
    """
    from gpt_neo.dataprep.templates import PLAIN, template_of
    from gpt_neo.serving.chat import with_chat

    own = os.path.dirname(served.tokenizer.name)  # empty for GPT-2's, which has no file
    try:
        template = template_of(own or job.folder, served.tokenizer, options.template)
    except DataError as error:
        if options.template:
            raise
        note(f"no chats: {error}")
        return dataclasses.replace(served, chat=None, no_chat=str(error))
    print("chat      " + ("by a template" if template else "in a plain form: the tokenizer has no template"))
    return with_chat(served, template or PLAIN)


def created_at(checkpoint: str) -> int:
    """When a checkpoint was written, in seconds since 1970. Raises: CheckpointError: it is gone."""
    try:
        return changed(checkpoint + ".index") // 10**9
    except FileNotFoundError as error:
        raise CheckpointError(f"{checkpoint}: was deleted as it was read") from error


def load_rows(job: Job, options: Serve, checkpoint: str) -> Any:
    """The model, by OpenVINO or TensorFlow: FastRows or a RowDecoder; the devices are printed first.

    Raises:
      ConfigError: OpenVINO is asked for and cannot run it.
    """
    if with_openvino(job, options, options.model.integers):
        from gpt_neo.fast.rows import FastRows

        print(OPENVINO, flush=True)
        return FastRows(job.run.model, checkpoint, options.rows, options.length, options.model.integers, options.cache)
    from gpt_neo.cli.devices import device_plan, device_text
    from gpt_neo.runtime.rows import RowDecoder

    plan = device_plan(job)
    print(device_text(job, plan), flush=True)
    return RowDecoder(job.run.model, checkpoint, options.rows, plan, options.length)
