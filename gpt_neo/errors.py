"""Errors that a user can act on: what was given, what is allowed, where."""

import numbers

LONGEST = 5000  # characters of a message
LOST = 69  # exit status of a run that has lost a machine, or a process with its devices: EX_UNAVAILABLE of sysexits.h
AGAIN = "Start the same commands again: a training goes on from its newest checkpoint"  # after that, whatever the job


class GptNeoError(Exception):
    """Base of every error that is the user's to mend; the command line prints it without a stack trace.

    status: exit status of a command that ends with it.
    """

    status = 2


class ConfigError(GptNeoError):
    """A configuration file, key or flag is wrong."""


class DataError(GptNeoError):
    """Training data or a tokenizer is missing, damaged or does not fit the model."""


class CheckpointError(GptNeoError):
    """A checkpoint is missing, damaged or of another shape."""


class InUseError(CheckpointError):
    """Another run is at work in the folder: later it may be free."""

    status = 73


class DeviceError(GptNeoError):
    """The mesh cannot be laid over the visible devices."""


class HostLost(DeviceError):
    """Another machine of the run, or the process of this one that joined it, is gone, or does not come."""

    status = LOST


def reason_of(error: BaseException) -> str:
    """What went wrong, without the path that messages name anyway."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def printable(text: str) -> str:
    """Text of others for a terminal: one line or several, nothing in it a command, and not without end."""
    whole = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in whole)


def brief(value: object, most: int = 100) -> str:
    """What a stranger's file says, for a message: one line, and no long one."""
    text = str(value)
    whole = text if len(text) <= most else f"{text[:most]}..."
    return printable(whole).replace("\n", "\\n").replace("\t", "\\t")


def check_number(flag: str, value: object, kind: type) -> None:
    """See that what Python was given for a flag is an int or a float, as `kind` says; those of NumPy are too.

    Raises:
      ConfigError: names flag and value.
    """
    if not isinstance(value, numbers.Integral if kind is int else numbers.Real):
        raise ConfigError(f"--{flag} is {value!r}; expected a {'whole ' if kind is int else ''}number")


def counted(count: int, noun: str) -> str:
    """A count with its noun: `1 document`, `2,000 documents`, `2 batches`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "es" if noun.endswith("ch") else "s")
