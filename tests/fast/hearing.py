"""A process that networks come and go in. It has no TensorFlow: to import that takes longer than all of the rest."""

import os
import signal
import sys

from gpt_neo.fast.network import Network


def hear_a_signal(config, checkpoint):
    """Two networks come and go, the first one first, then a signal comes."""
    heard = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    networks = [Network(config, checkpoint) for _ in range(2)]
    del networks[0], networks[0]
    os.kill(os.getpid(), signal.SIGTERM)
    sys.exit(heard != [signal.SIGTERM])
