"""Mounts that only one process sees, so that a test may change the machine."""

import ctypes
import functools
import os
import subprocess

import pytest

CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 1 << 18


def leave_mounts():
    """From now on this process mounts for itself alone. Raises: OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
        raise OSError(ctypes.get_errno(), "no mount namespace")


def mount(kind, target, options=""):
    """`tmpfs` on a folder, `remount` of one with other options, or the file `kind` over another."""
    words = {"tmpfs": ["-t", "tmpfs", "-o", options, "tmpfs"], "remount": ["-o", f"remount,{options}"]}
    subprocess.run(["mount", *words.get(kind, ["--bind", kind]), target], check=True)


@functools.lru_cache(maxsize=1)
def why_not():
    """Why this process cannot have mounts of its own; "" if it can."""
    if os.geteuid():
        return "mounts need root"
    try:
        done = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True, check=False, timeout=10)
    except OSError as error:
        return str(error)
    return done.stderr.strip() if done.returncode else ""


def need_mounts():
    """Skip the test where there can be none."""
    if why_not():
        pytest.skip(f"no mount namespace: {why_not()}")


def drop_capabilities():
    """From now on permissions bind this process, root or not."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if libc.capset(header, nothing):
        raise OSError(ctypes.get_errno(), "capset")
