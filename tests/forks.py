"""main.py in processes of its own that share one import of TensorFlow: each is a fork of a server."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

from tests.conftest import ROOT

SERVER = """
import json, os, sys
from gpt_neo.cli import quiet
from gpt_neo.cli.common import run_command
from gpt_neo.cli.main import main
import gpt_neo.cli.train, gpt_neo.runtime.estimator

for line in sys.stdin:
    job = json.loads(line)
    if "wait" in job:
        print(os.waitpid(job["wait"], 0)[1], flush=True)
        continue
    pid = os.fork()
    if not pid:
        output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        quiet.filter_native_stderr = lambda: None
        status = 1
        try:
            exec(job["before"], {"main": main, "argv": job["argv"]})
            status = run_command(main, job["argv"])
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(pid, flush=True)
"""


class Child:
    """A running main.py."""

    def __init__(self, forks, pid, output):
        self.forks, self.pid, self.output = forks, pid, output

    @property
    def text(self):
        return open(self.output, encoding="utf-8", errors="replace").read() if os.path.exists(self.output) else ""

    def kill(self, number=signal.SIGKILL):
        os.kill(self.pid, number)

    def wait(self):
        """The exit status; minus the number of a signal that ended it."""
        return os.waitstatus_to_exitcode(int(self.forks.ask({"wait": self.pid})))

    def until(self, condition, seconds=60):
        """Wait for a condition while the process lives."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end and os.path.exists(f"/proc/{self.pid}/stat"), self.text
            time.sleep(0.01)


class Forks:
    """The server."""

    def __init__(self, folder, **variables):
        self.folder, self.count = folder, 0
        env = dict(os.environ, TF_CPP_MIN_LOG_LEVEL="3", **variables)
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, cwd=ROOT
        )

    def ask(self, job):
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def start(self, *argv, before=""):
        """Start main.py; `before` is run first, in its process."""
        self.count += 1
        output = os.path.join(self.folder, f"output_{self.count}")
        job = {"argv": [str(word) for word in argv], "before": before, "output": output}
        return Child(self, int(self.ask(job)), output)

    def run(self, *argv, before=""):
        """Run main.py to its end: (exit status, what it wrote)."""
        child = self.start(*argv, before=before)
        return child.wait(), child.text


@contextlib.contextmanager
def forks(folder, **variables):
    """Run a server with these environment variables."""
    server = Forks(str(folder), **variables)
    try:
        yield server
    finally:
        server.process.stdin.close()
        server.process.wait(30)
