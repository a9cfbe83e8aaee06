"""Where files lie, behind one small interface: read, list, write whole or not at all, delete inside a fence.

A path is local (`~` is the home folder) or of a scheme. gs:// is served by google-cloud-storage (`buckets.py`); what a
job of TensorFlow reads and writes there goes through TensorFlow's own file systems, as its checkpoints do
(`tensorflow.py`). Failures are OSErrors: FileNotFoundError, PermissionError, or another with the reason.
"""

from __future__ import annotations

import contextlib
import errno
import glob as local_glob
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO, Optional

from gpt_neo.errors import ConfigError, DataError, GptNeoError, reason_of
from gpt_neo.storage import buckets
from gpt_neo.storage.buckets import REMOTE, SCHEME, bucket_and_key, upload

__all__ = [
    "REMOTE",
    "absolute",
    "bucket_and_key",
    "check_fence",
    "check_place",
    "delete",
    "delete_folder",
    "exists",
    "glob",
    "install",
    "is_folder",
    "is_remote",
    "join",
    "list_files",
    "local",
    "make_folder",
    "open_read",
    "parse_json",
    "read_bytes",
    "read_json",
    "scheme_of",
    "size",
    "sync",
    "upload",
    "version",
    "write_bytes",
    "write_json",
    "writing",
]

NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)  # of file systems that have no such call


def scheme_of(path: str) -> str:
    """What stands before `://` in a path or an address; "" for a local path."""
    scheme, found, _ = path.partition("://")
    return scheme if found and re.fullmatch(r"[A-Za-z][\w.+-]*", scheme) else ""


def is_pattern(path: str) -> bool:
    """Whether TensorFlow takes a path for a pattern where it looks for checkpoints and deletes them."""
    return any(c in path for c in "*?[\\")


def is_remote(path: str) -> bool:
    """Whether a path names a Google Cloud Storage object.

    Raises:
      ConfigError: it is of another scheme, which nothing here serves.
    """
    scheme = scheme_of(path)
    if scheme not in ("", SCHEME):
        raise ConfigError(f"{path!r}: nothing here reads or writes {scheme}://; expected a local path, or {REMOTE}...")
    return scheme == SCHEME


def absolute(path: str) -> str:
    """A local path from the root on, `~` being the home folder; another as it is."""
    return path if scheme_of(path) else os.path.abspath(local(path))


def local(path: str) -> str:
    """A path with `~` replaced by the home folder."""
    return os.path.expanduser(path)


def join(folder: str, *names: str) -> str:
    """A path inside a folder."""
    return os.path.join(folder, *names) if not scheme_of(folder) else "/".join([folder.rstrip("/"), *names])


def exists(path: str) -> bool:
    """Whether there is such a file or object; there is none below a file."""
    try:
        size(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def size(path: str) -> int:
    """Bytes of a file or object. Raises: FileNotFoundError."""
    return buckets.size(path) if is_remote(path) else regular_stat(path).st_size


def version(path: str) -> str:
    """A string that changes when the content does: size and time of change, or the object's generation."""
    if is_remote(path):
        return buckets.version(path)
    status = regular_stat(path)
    return f"{status.st_size}-{status.st_mtime_ns}"


def regular_stat(path: str) -> os.stat_result:
    """Status of a local file; a folder is none, nor is a pipe, which a reader would wait for."""
    status = os.stat(local(path))
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
        raise FileNotFoundError(errno.ENOENT, f"{kind}, not a file", path)
    return status


def is_folder(path: str) -> bool:
    """Whether a path is a local folder, or a prefix of remote objects."""
    return buckets.is_folder(path) if is_remote(path) else os.path.isdir(local(path))


def list_files(folder: str) -> list[str]:
    """Every file below a folder, sorted; links are followed, hidden files and folders left out."""
    if is_remote(folder):
        return buckets.list_files(folder)
    found: list[str] = []
    seen: set[tuple] = set()
    tops = [local(folder)]
    while tops:  # folders first, then what links lead to: a folder has the name that it has without links
        links = []
        for top, folders, names in os.walk(tops.pop(0), onerror=raise_error):
            about = os.stat(top)
            if (about.st_dev, about.st_ino) in seen:  # a link back, or a second one to the same folder
                folders[:] = []
                continue
            seen.add((about.st_dev, about.st_ino))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            links += [path for path in (os.path.join(top, name) for name in folders) if os.path.islink(path)]
            found += [os.path.join(top, name) for name in names if not name.startswith(".")]
        tops += links
    return sorted(found)


def glob(pattern: str) -> list[str]:
    """Files that match a pattern (`*`, `?`, `[...]` within a name, `**` over folders), sorted.

    Raises:
      OSError: the folder before the first of these may not be listed.
    """
    if is_remote(pattern):
        return buckets.glob(pattern)
    found = sorted(path for path in local_glob.glob(local(pattern), recursive=True) if os.path.isfile(path))
    folder = os.path.dirname(re.split(r"[*?\[]", local(pattern))[0]) or "."
    if not found and os.path.isdir(folder):
        os.listdir(folder)  # or a folder that may not be listed would look like an empty one
    return found


def open_read(path: str, failures: Optional[buckets.Failures] = None) -> BinaryIO:
    """Open for reading from any place (seekable).

    Args:
      failures: makes the context of a path in which what a bucket does not give becomes another error than OSError.
    """
    if is_remote(path):
        return buckets.open_read(path, failures)
    if stat.S_ISFIFO(os.stat(local(path)).st_mode):
        raise OSError(errno.ESPIPE, "a pipe, not a file", path)
    return open(local(path), "rb")


def read_bytes(path: str) -> bytes:
    """The whole content of a small file."""
    with open_read(path) as handle:
        return handle.read()


def read_json(path: str, kind: type[GptNeoError] = DataError, once: bool = False) -> dict:
    """A JSON object.

    Args:
      once: refuse a key that stands twice, of which the last would count.

    Raises:
      kind: there is none; names the path, and the line of a mistake.
    """

    try:
        value = parse_json(read_bytes(path), once)
    except json.JSONDecodeError as error:
        raise kind(f"{path}:{error.lineno}: not valid JSON: {error.msg}{usual_mistake(error)}") from error
    except UnicodeDecodeError as error:
        raise kind(f"{path}: not valid JSON: byte {error.start:,} belongs to no text in Unicode") from error
    except OSError as error:
        raise kind(f"{path}: cannot be read: {reason_of(error)}") from error
    except ValueError as error:
        raise kind(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise kind(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def usual_mistake(error: json.JSONDecodeError) -> str:
    """What other languages have and JSON has not, where it stands at the place of an error; else empty."""
    before, rest = error.doc[: error.pos].rstrip(), error.doc[error.pos :].lstrip()
    if rest.startswith(("//", "/*", "#")):
        return "; JSON has no comments"
    if before.endswith(",") and rest.startswith(("}", "]")):
        return f"; no comma may stand before {rest[0]}"
    if rest.startswith("'"):
        return "; quotes have to be double"
    return "; it is true, false, null in JSON" if rest.startswith(("True", "False", "None")) else ""


def parse_json(data: bytes, once: bool = True) -> Any:
    """JSON that anybody may have written, in any encoding of Unicode.

    Args:
      once: refuse a key that stands twice, of which the last would count.

    Raises:
      ValueError: it is damaged, nested too deep, or holds a number of thousands of digits.
    """

    def each_once(pairs: list) -> dict:
        found: dict = {}
        for name, value in pairs:
            if once and name in found:
                raise ValueError(f"key {name!r} stands twice")
            found[name] = value
        return found

    try:
        return json.loads(data.decode(json.detect_encoding(data)), object_pairs_hook=each_once)
    except RecursionError:
        raise ValueError("not valid JSON: nested too deeply") from None
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        if "digits" in str(error):  # Python's own limit
            raise ValueError("not valid JSON: a number of more than 4,300 digits") from error
        raise


@contextlib.contextmanager
def writing(path: str, staging: str = "") -> Iterator[BinaryIO]:
    """A handle to write a file that appears under its name only when it is whole, and replaces one of that name.

    Args:
      staging: a local folder for the unfinished file; on the same file system, if `path` is local. Default: beside it.
    """
    folder, name = os.path.split(local(path))
    place = staging or (tempfile.gettempdir() if is_remote(path) else folder or ".")
    temporary = os.path.join(place, f".{name}.{os.getpid()}-{os.urandom(4).hex()}.writing")
    try:
        with open(temporary, "wb") as handle:
            yield handle
        if is_remote(path):
            upload(temporary, path)
        else:
            install(temporary, local(path))
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


def write_bytes(path: str, data: bytes, staging: str = "") -> None:
    """Write a small file, whole or not at all."""
    with writing(path, staging) as handle:
        handle.write(data)


def write_json(path: str, value: Any) -> None:
    """Write a small file of JSON for people to read, whole or not at all, and the folder that it goes to."""
    make_folder(os.path.dirname(absolute(path)))
    write_bytes(path, json.dumps(value, indent=2).encode() + b"\n")


def install(temporary: str, path: str) -> None:
    """Give a finished local file, beside its place or on the same file system, its name: its content is on the disk
    first, and the name after it."""
    put_on_disk(temporary)
    os.replace(temporary, path)
    put_on_disk(os.path.dirname(path) or ".")


def sync(*paths: str) -> None:
    """Put files and folders on the disk: the content of each in this order, then the names of all of them.

    What is told to be there in another file has to be synced before that file is written; what is to be deleted for it
    is deleted after. A folder's content is its list of names. Remote objects are stored once they are written.
    """
    here = [absolute(path) for path in paths if not is_remote(path)]
    for path in [*here, *dict.fromkeys(map(os.path.dirname, here))]:
        put_on_disk(path)


def put_on_disk(path: str) -> None:
    """fsync of a local file or folder; nothing where its file system has no such call."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
    finally:
        os.close(handle)


def make_folder(path: str) -> None:
    """Make a local folder and those above it, on the disk; remote prefixes need none."""
    if is_remote(path):
        return
    top, made = absolute(path), []
    while not os.path.isdir(top):
        made.append(top)
        top = os.path.dirname(top)
    os.makedirs(local(path), exist_ok=True)
    sync(*made[::-1])


def check_place(path: str) -> None:
    """See before hours of work that a local file can be written after them; its folder is made.

    Raises:
      OSError: it cannot.
    """
    if is_remote(path):
        return
    place = absolute(path)
    if os.path.isdir(place):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    make_folder(os.path.dirname(place))
    with tempfile.TemporaryFile(dir=os.path.dirname(place)):
        pass


def delete(path: str, within: str) -> None:
    """Delete a file; one that is not there is fine.

    Raises:
      ValueError: the path does not lie below `within`, or that is a whole bucket or file system.
    """
    check_fence(path, within)
    if is_remote(path):
        buckets.delete(path)
        return
    with contextlib.suppress(FileNotFoundError):
        os.remove(local(path))


def delete_folder(path: str, within: str) -> None:
    """Delete a folder with everything in it; one that is not there is fine. Raises: as `delete`."""
    check_fence(path, within)
    if is_remote(path):
        for name in buckets.paths_from(path.rstrip("/") + "/"):
            delete(name, within)
        return
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(local(path))


def check_fence(path: str, within: str) -> None:
    """Refuse to delete outside a folder."""
    if is_remote(within):
        inside = path.startswith(within.rstrip("/") + "/") and ".." not in path.split("/")
        wide = not bucket_and_key(within)[1].strip("/")
    else:
        fence = os.path.realpath(local(within))
        inside = not is_remote(path) and os.path.realpath(local(path)).startswith(fence.rstrip(os.sep) + os.sep)
        wide = fence == os.path.dirname(fence)
    if wide or not inside:
        raise ValueError(f"refusing to delete {path!r}: not below {within!r}, or that is too wide")


def raise_error(error: OSError) -> None:
    """Stop a walk that cannot read a folder."""
    raise error
