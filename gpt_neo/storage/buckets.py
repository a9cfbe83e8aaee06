"""Objects of Google Cloud Storage through google-cloud-storage (extra `gcs`), which honours STORAGE_EMULATOR_HOST.

Failures are OSErrors: FileNotFoundError, PermissionError, or another with the reason.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import io
import logging
import os
import re
import time
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO, Callable, Optional

from gpt_neo import wire
from gpt_neo.errors import DataError
from gpt_neo.system import how_to_install

SCHEME = "gs"
REMOTE = f"{SCHEME}://"
READ_CHUNK = 8 << 20  # bytes fetched from a remote object at once
UPLOAD_CHUNK = 16 << 20  # bytes of one request of a resumable upload; a multiple of 256 KiB
TIMEOUT = (10, 60)  # seconds to connect, and to wait for an answer
QUIET = 5  # seconds that it is tried again without a word
DEADLINE = 300  # seconds that one request is tried again after 5xx answers and broken connections
UPLOAD_ATTEMPTS = 5  # whole uploads, after a session that could not be continued
SESSION_FAILURES = 6  # requests of a session that fail one after another
PAUSE = 1.0  # seconds before the second attempt; doubles
LOG = logging.getLogger("gpt_neo.storage")
Failures = Callable[[str], contextlib.AbstractContextManager]  # of a path, around a request


def bucket_and_key(path: str) -> tuple[str, str]:
    """Parts of gs://bucket/key. Raises: DataError."""
    bucket, _, key = path[len(REMOTE) :].partition("/")
    if not bucket:
        raise DataError(f"{path!r} names no bucket; expected gs://bucket/path")
    return bucket, key


def size(path: str) -> int:
    """Bytes of an object. Raises: FileNotFoundError."""
    return int(blob_of(path).size)


def version(path: str) -> str:
    """A string that changes when the content does: size and generation."""
    blob = blob_of(path)
    return f"{blob.size}-{blob.generation}"


def is_folder(path: str) -> bool:
    """Whether a path is a prefix of objects."""
    bucket, key = bucket_and_key(path.rstrip("/") + "/")
    with remote_errors(path):
        return any(
            True for _ in client().list_blobs(bucket, prefix=key, max_results=1, timeout=TIMEOUT, retry=retries(path))
        )


def list_files(folder: str) -> list[str]:
    """Every object below a prefix, sorted; those with a hidden part in their name are left out."""
    prefix = folder.rstrip("/") + "/"
    return [path for path in paths_from(prefix) if not any(p.startswith(".") for p in path[len(prefix) :].split("/"))]


def glob(pattern: str) -> list[str]:
    """Objects that match a pattern, sorted."""
    wanted = re.compile(glob_expression(pattern))
    return [path for path in paths_from(re.split(r"[*?\[]", pattern)[0]) if wanted.fullmatch(path)]


def glob_expression(pattern: str) -> str:
    """Regular expression of a glob in which only `**` crosses a slash."""
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    tokens = re.findall(r"\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\]|.", pattern, re.DOTALL)
    return "".join(
        parts.get(t) or (t.replace("[!", "[^", 1) if len(t) > 1 and t[0] == "[" else re.escape(t)) for t in tokens
    )


def open_read(path: str, failures: Optional[Failures] = None) -> BinaryIO:
    """Open for reading from any place (seekable). failures: see `RemoteFile`."""
    return io.BufferedReader(RemoteFile(path, failures or contextlib.nullcontext))  # type: ignore[return-value]


def delete(path: str) -> None:
    """Delete an object; one that is not there is fine."""
    bucket, key = bucket_and_key(path)
    with contextlib.suppress(FileNotFoundError), remote_errors(path):
        client().bucket(bucket).blob(key).delete(timeout=TIMEOUT, retry=retries(path))


def upload(local: str, path: str) -> None:
    """Copy a local file to a remote object, which appears whole: resumable, tried again, checked by CRC-32C.

    Raises:
      OSError: it could not be done, or the object differs from the file.
    """
    checksum = crc32c_of(local)
    for attempt in range(1, UPLOAD_ATTEMPTS + 1):
        try:
            with remote_errors(path):
                send(local, path)
        except (FileNotFoundError, PermissionError):
            raise
        except OSError:
            # The answer may be lost, not the object: look before sending it all again.
            if not has_checksum(path, checksum):
                if attempt == UPLOAD_ATTEMPTS:
                    raise
                time.sleep(PAUSE * 2 ** (attempt - 1))
                continue
        if has_checksum(path, checksum):
            return
    raise OSError(errno.EIO, "the uploaded object differs from the file", path)


def send(local: str, path: str) -> None:
    """Send a file in one resumable session; after a failure the server is asked how far it has come.

    The client's own upload sends a chunk again whose answer was lost, which a server may refuse.
    """
    bucket, key = bucket_and_key(path)
    total = os.path.getsize(local)
    blob = client().bucket(bucket).blob(key)
    session = blob.create_resumable_upload_session(size=total, timeout=TIMEOUT, retry=retries(path))
    place: int | None = 0
    failures = 0
    with open(local, "rb") as handle:
        while place is not None:
            try:
                if failures:
                    place = put(session, b"", f"bytes */{total}")
                    if place is None:
                        return
                handle.seek(place)
                chunk = handle.read(UPLOAD_CHUNK)
                place = put(session, chunk, f"bytes {place}-{place + len(chunk) - 1}/{total}" if total else "bytes */0")
                failures = 0
            except TransientError:
                failures += 1
                if failures > SESSION_FAILURES:
                    raise
                time.sleep(PAUSE * 2 ** (failures - 1))


class TransientError(OSError):
    """A request that may succeed when it is made again."""


def put(session: str, data: bytes, content_range: str) -> int | None:
    """One request of a resumable session.

    Returns:
      bytes that the server has; None if it has all.

    Raises:
      TransientError: no answer, or one that asks to try again.
      OSError: the session is refused.
    """
    import requests

    try:
        answer = requests.put(session, data=data, headers={"Content-Range": content_range}, timeout=TIMEOUT)
    except requests.RequestException as error:
        raise TransientError(errno.EIO, f"{type(error).__name__}: {error}") from error
    if answer.status_code in (200, 201):
        return None
    if answer.status_code == 308:
        end = answer.headers.get("Range", "").rpartition("-")[2]
        return int(end) + 1 if end else 0
    kind = TransientError if answer.status_code in (408, 429) or answer.status_code >= 500 else OSError
    raise kind(errno.EIO, f"the upload was answered with {answer.status_code}: {answer.text[:200]}")


def has_checksum(path: str, checksum: str) -> bool:
    """Whether there is an object of this CRC-32C."""
    try:
        return blob_of(path).crc32c == checksum
    except FileNotFoundError:
        return False


def crc32c_of(local: str) -> str:
    """CRC-32C of a file as Google Cloud Storage writes it."""
    crc = 0
    with open(local, "rb") as handle:
        while block := handle.read(1 << 20):
            crc = wire.checksum(block, crc)
    return base64.b64encode(crc.to_bytes(4, "big")).decode("ascii")


class RemoteFile(io.RawIOBase):
    """A remote object opened for reading; failures are OSErrors that name it, also an answer that ends too early.

    failures: makes the context of each request, in which they may become other errors.
    """

    def __init__(self, path: str, failures: Failures) -> None:
        self.path, self.failures = path, failures
        with failures(path), remote_errors(path):
            blob = blob_of(path)
            self.length = int(blob.size)
            self.handle = blob.open("rb", chunk_size=READ_CHUNK, timeout=TIMEOUT, retry=retries(path))

    def readable(self) -> bool:
        """It is for reading."""
        return True

    def seekable(self) -> bool:
        """From any place on."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place; not further than the end."""
        with self.failures(self.path), remote_errors(self.path):
            return int(self.handle.seek(offset, whence))

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with what comes; 0 at the end. Raises: OSError: nothing came, and it is not the end."""
        with self.failures(self.path), remote_errors(self.path):
            place = self.handle.tell()
            data = self.handle.read(len(buffer)) if len(buffer) and place < self.length else b""
            if len(buffer) and not data and place < self.length:
                raise OSError(errno.EIO, f"nothing came after {place:,} of {self.length:,} bytes", self.path)
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        """All that is left."""
        pieces = []
        while piece := self.read(READ_CHUNK):
            pieces.append(piece)
        return b"".join(pieces)


def client() -> Any:
    """The client of this process."""
    return client_of(os.environ.get("STORAGE_EMULATOR_HOST"))


@functools.lru_cache(maxsize=2)
def client_of(emulator: str | None) -> Any:
    """A google.cloud.storage.Client, made once.

    Raises:
      DataError: the package is not installed.
      PermissionError: there are no credentials.
    """
    import_client()
    from google.auth.exceptions import DefaultCredentialsError
    from google.cloud import storage

    try:
        return storage.Client()
    except DefaultCredentialsError as error:
        raise PermissionError(
            errno.EACCES,
            "no credentials: run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
            REMOTE,
        ) from error


@functools.lru_cache(maxsize=1)
def import_client() -> None:
    """Import google-cloud-storage, which only gs:// paths need.

    Raises:
      DataError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of Python versions that the package will drop one day
            import google.cloud.storage  # noqa: F401
    except ImportError as error:
        raise DataError(f"gs:// paths need the extra gcs: {how_to_install('gcs')}") from error


def retries(path: str) -> Any:
    """How one request is tried again: 429, 5xx, broken connections and timeouts, with growing pauses."""
    from google.api_core.retry import Retry
    from google.cloud.storage.retry import DEFAULT_RETRY

    return Retry(DEFAULT_RETRY._predicate, timeout=DEADLINE, on_error=Trouble(path))


class Trouble:
    """Called with each error after which a request is tried again; logs it after QUIET seconds, then once a minute, as
    nobody waits five minutes without a word."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.due: Optional[float] = None

    def __call__(self, error: Exception) -> None:
        now = time.monotonic()
        if self.due is None:
            self.due = now + QUIET
        if now >= self.due:
            self.due = now + 60
            LOG.warning("%s: %s; it is tried again, %d seconds in all", self.path, innermost(error), DEADLINE)


def innermost(error: BaseException) -> BaseException:
    """What an error of the client was made of: that a name is not known, where it tells of its pools and attempts."""
    while True:
        inner = getattr(error, "cause", None) or getattr(error, "reason", None) or next(iter(error.args), None)
        if not isinstance(inner, BaseException):
            return error
        error = inner


def blob_of(path: str) -> Any:
    """An object with its metadata. Raises: FileNotFoundError."""
    bucket, key = bucket_and_key(path)
    with remote_errors(path):
        blob = client().bucket(bucket).get_blob(key, timeout=TIMEOUT, retry=retries(path)) if key else None
    if blob is None:
        raise FileNotFoundError(errno.ENOENT, "no such object", path)
    return blob


def paths_from(prefix: str) -> list[str]:
    """Paths of all objects that begin with a prefix, sorted."""
    bucket, key = bucket_and_key(prefix)
    with remote_errors(prefix):
        blobs = list(client().list_blobs(bucket, prefix=key, timeout=TIMEOUT, retry=retries(prefix)))
    return sorted(f"{REMOTE}{bucket}/{blob.name}" for blob in blobs if not blob.name.endswith("/"))


@contextlib.contextmanager
def remote_errors(path: str) -> Iterator[None]:
    """Turn the client's exceptions into OSErrors."""
    import_client()
    import requests
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError
    from google.cloud.storage.exceptions import DataCorruption, InvalidResponse

    try:
        yield
    except exceptions.NotFound as error:
        raise FileNotFoundError(errno.ENOENT, "no such object or bucket", path) from error
    except (exceptions.Forbidden, exceptions.Unauthorized, GoogleAuthError) as error:
        raise PermissionError(errno.EACCES, f"no access: {error}", path) from error
    except exceptions.RetryError as error:
        raise OSError(errno.EIO, f"no answer in {DEADLINE} seconds: {innermost(error)}", path) from error
    except (exceptions.GoogleAPIError, InvalidResponse, DataCorruption, requests.RequestException) as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}", path) from error
