"""`python -m gpt_neo serve --model CONFIG`: completions over HTTP, and a page to play with."""

from __future__ import annotations

import argparse
import os
import time
from typing import Optional

from gpt_neo.cli.job import Job, job_checkpoint, load_run, memory_text, model_folder, model_text
from gpt_neo.errors import ConfigError

KEY = "GPT_NEO_API_KEY"


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(
        prog="python -m gpt_neo serve",
        description="Serve a model over HTTP, as OpenAI's completions API does, with a page to play with. See "
        "docs/serving.md.",
    )
    p.add_argument("--model", required=True, metavar="CONFIG", help="name in configs/, or path, of a model config")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the config")
    p.add_argument("--dtype", choices=("bfloat16", "float32"), help="type of the weights in memory (key precision)")
    p.add_argument("--checkpoint", metavar="WHICH", help="what to serve: latest (the default), best, or a step")
    p.add_argument("--gpu_ids", nargs="+", default=[], metavar="ID", help="devices such as 0 1, or cpu:0 cpu:1")
    p.add_argument("--host", default="127.0.0.1", help=f"others than loopback need {KEY} (default: %(default)s)")
    p.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    p.add_argument("--rows", type=int, default=16, help="answers made at once, in sixteens (default: %(default)s)")
    p.add_argument("--length", type=int, metavar="N", help="most tokens of prompt and answer (default: n_ctx)")
    p.add_argument(
        "--max_waiting",
        type=int,
        default=256,
        metavar="N",
        help="answers that may wait for a row; more get status 429 (default: %(default)s)",
    )
    p.add_argument("--max_body", type=int, default=1 << 20, metavar="BYTES", help="default: %(default)s")
    p.add_argument("--timeout", type=float, default=600.0, metavar="S", help="seconds for one request (default: 600)")
    p.add_argument(
        "--drain",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds that SIGTERM leaves to what is under way (default: 60)",
    )
    p.add_argument("-v", "--verbose", action="store_true", help="show what TensorFlow logs")
    p.set_defaults(tpu=None)  # the jobs of main.py, whose lines on devices are shown here too, may have one
    return p


def check(args: argparse.Namespace, key: Optional[str]) -> None:
    """Refuse flags that mean nothing, and an open door."""
    from gpt_neo.serving.run import is_loopback

    for name in ("rows", "max_body", "timeout", "length"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise ConfigError(f"--{name} is {value}; expected more than 0")
    for name in ("max_waiting", "drain"):
        if getattr(args, name) < 0:
            raise ConfigError(f"--{name} is {getattr(args, name)}; expected at least 0")
    if not 0 <= args.port < 65536:
        raise ConfigError(f"--port is {args.port}; expected 0 to 65535")
    if not is_loopback(args.host) and not key:
        raise ConfigError(
            f"--host {args.host} is open to other machines: set a bearer token in {KEY}, or bind to 127.0.0.1"
        )


def main(argv: Optional[list] = None) -> int:
    """Load the model and serve it."""
    args = build_parser().parse_args(argv)
    key = os.environ.get(KEY) or None
    try:
        check(args, key)
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(f"serving needs the package {error.name}: pip install 'gpt_neo[serve]'") from error
    dtype = [f"precision={args.dtype}"] if args.dtype else []
    run = load_run(args.model, [*args.set, *dtype])
    job = Job(args, run, model_folder(run, reads_only=True))
    checkpoint = job_checkpoint(job).path
    from gpt_neo.cli.quiet import silence

    silence(args.verbose, sampling=run.model.precision)
    return serve_job(job, checkpoint, key)


def serve_job(job: Job, checkpoint: str, key: Optional[str]) -> int:
    """Everything that needs TensorFlow."""
    from gpt_neo.cli.train import device_plan, device_text
    from gpt_neo.config.estimate import sampling_memory
    from gpt_neo.inputs.preflight import run_tokenizer
    from gpt_neo.runtime.rows import RowDecoder
    from gpt_neo.serving.app import Limits, Server
    from gpt_neo.serving.engine import Engine
    from gpt_neo.serving.metrics import Metrics
    from gpt_neo.serving.requests import Served
    from gpt_neo.serving.run import bind, serve

    args, run = job.args, job.run
    tokenizer, eos = run_tokenizer(run, job.folder)
    listener = bind(args.host, args.port)
    print(model_text(run))
    print(memory_text(sampling_memory(run.model, args.rows)))
    print(device_text(job, device_plan(job)), flush=True)
    began = time.monotonic()
    decoder = RowDecoder(run.model, checkpoint, args.rows, device_plan(job), args.length)
    for note in decoder.notes:
        print(f"note      {note}")
    print(f"loaded    {checkpoint} in {time.monotonic() - began:.1f} s; {decoder.rows} rows of {decoder.length} tokens")
    metrics = Metrics()
    engine = Engine(decoder, tokenizer, eos, metrics.observe)
    served = Served(run.name, tokenizer, run.model.n_vocab, decoder.length, eos)
    limits = Limits(body=args.max_body, seconds=args.timeout, waiting=args.max_waiting, key=key)
    server = Server(engine, served, limits, metrics, created=int(os.path.getmtime(checkpoint + ".index")))
    engine.begin()
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(
        f"serving   {run.name} at http://{shown}:{port} (page), http://{shown}:{port}/v1 (API)"
        + (", with a bearer token" if key else ""),
        flush=True,
    )
    serve(server.app(), listener, args.drain)
    engine.close()
    print("stopped", flush=True)
    return 0
