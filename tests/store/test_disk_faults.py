"""The disk store when things go wrong: killed, damaged, full, removed. It gives the right page or a reason."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.store.filler import KEPT, PAGE_BYTES
from tests.store.made import FINGERPRINT, SIZE, key, numbered, outcome, put, small

from jevons.base.errors import ConfigError, StoreError
from jevons.facts.block import LOST, BlockKey
from jevons.store.directory import LOCK
from jevons.store.disk import DiskStore, Written
from jevons.store.header import HEADER_BYTES, decode, encode, record_bytes
from jevons.store.segment import BLOCKS, HEADERS, Segment

ROOT = Path(__file__).parents[2]
STRIDE = HEADER_BYTES + SIZE  # from block to block in a file of blocks
PUT_S = 0.003  # longer than most puts of a filler take
EACH = 50  # blocks in a segment that is going to be damaged


# Killed.


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def killed(draw: random.Random, directory: Path, size_bytes: int, segment_bytes: int, first: int) -> list[str]:
    """What a filler told until it was killed, some puts and a random part of another one after its start."""
    arguments = (str(directory), str(size_bytes), str(segment_bytes), str(first))
    with running("-m", "tests.store.filler", *arguments) as filler:
        assert filler.stdout is not None
        lines = [filler.stdout.readline() for _ in range(draw.randint(3, 25))]
        instant_s = time.perf_counter() + draw.random() * PUT_S
        while time.perf_counter() < instant_s:  # to sleep is not exact enough
            pass
        filler.send_signal(signal.SIGKILL)
        lines += filler.stdout.readlines()
    return [line for line in lines if line.endswith("\n")]  # a line cut short acknowledges nothing


@pytest.mark.parametrize(("segments", "seed"), [(1000, 1), (5, 2)])
def test_killed_at_any_instant_it_loses_nothing_that_was_acknowledged(tmp_path: Path, segments: int, seed: int) -> None:
    """Six times on the same directory; with 5 segments it recycles all the while."""
    draw, segment_bytes = random.Random(seed), 10 * record_bytes(PAGE_BYTES)
    size_bytes = segments * segment_bytes + segment_bytes // 3
    alive: dict[int, None] = {}  # acknowledged and not reported as removed, oldest first
    first = 0
    for _ in range(6):
        for line in killed(draw, tmp_path, size_bytes, segment_bytes, first):
            stored, removed = (part.split() for part in line.split("|"))
            alive |= dict.fromkeys(map(int, stored))
            for number in map(int, removed):
                del alive[number]
        store = DiskStore(tmp_path, size_bytes, segment_bytes=segment_bytes)
        lost = [number for number in alive if key(number) not in store]
        # One put was under way: it may have recycled, and cannot have told; but what was kept is there.
        assert set(lost) <= set(list(alive)[: 20 if segments < 1000 else 0]) - set(KEPT)
        held = numbered(k for k, _ in store.held())
        assert {outcome(store, number, PAGE_BYTES) for number in alive if number not in lost} == {"right"}
        unlisted = Counter(outcome(store, number, PAGE_BYTES) for number in held if number not in alive)
        assert set(unlisted) <= {"right"}, "what is found behind the last listed block was written whole"
        assert set(store.counts) <= {"missing"}, "at most a block that was cut off"
        alive = dict.fromkeys(held)
        first = max(held) + 1
        store.close()


def test_killed_while_it_recycles_it_has_kept_what_it_was_to_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete = Segment.delete
    instants: list[Path] = []

    def observed(segment: Segment) -> None:
        instants.append(shutil.copytree(tmp_path / "store", tmp_path / f"at {len(instants)}"))
        delete(segment)

    monkeypatch.setattr(Segment, "delete", observed)
    store = small(tmp_path / "store", blocks=6)
    put(store, range(48))
    put(store, [48], lambda k: k in (key(1), key(4)))
    monkeypatch.undo()
    store.close()
    for instant in instants:
        store = small(instant, blocks=6)
        assert [outcome(store, number) for number in (1, 4, 6, 47)] == ["right"] * 4
        assert (len(store), store.counts) == (len(store.held()), {})
        store.close()
    assert len(instants) == 1


def test_a_block_cut_off_by_a_kill_at_any_byte_is_never_served(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    store = small(whole)
    put(store, [0])
    put(store, [1, 2])
    store.close()
    listed = 1 * HEADER_BYTES  # the list of headers, as it was before the last put
    for size in range(STRIDE, 3 * STRIDE, 7):
        shutil.copytree(whole, cut)
        os.truncate(cut / f"{0:010}{BLOCKS}", size)
        os.truncate(cut / f"{0:010}{HEADERS}", listed)
        store = small(cut)
        assert [outcome(store, number) for number in range(3)] == [
            "right",
            *("right" if (number + 1) * STRIDE <= size else "missing" for number in (1, 2)),
        ]
        assert put(store, [1, 2]).refused == {}
        store.close()
        store = small(cut)
        assert {outcome(store, number) for number in range(3)} == {"right"}
        assert not store.counts
        store.close()
        shutil.rmtree(cut)


# Damaged.


class Damage:
    """Ways to damage the files of a closed store of segments of `EACH` blocks, each telling which it ruined."""

    def __init__(self, directory: Path, draw: random.Random) -> None:
        self.directory = directory
        self.draw = draw

    def blocks(self, segment: int) -> Path:
        return self.directory / f"{segment:010}{BLOCKS}"

    def headers(self, segment: int) -> Path:
        return self.directory / f"{segment:010}{HEADERS}"

    def some(self, count: int) -> list[int]:
        return self.draw.sample(range(EACH), count)

    def overwrite(self, path: Path, at: int, raw: bytes | bytearray) -> None:
        with path.open("r+b") as file:
            file.seek(at)
            file.write(raw)

    def flip(self, path: Path, start: int, size: int) -> None:
        """One random bit of `size` bytes."""
        raw = bytearray(path.read_bytes()[start : start + size])
        raw[self.draw.randrange(size)] ^= 1 << self.draw.randrange(8)
        self.overwrite(path, start, raw)

    def exchange(self, one: Path, other: Path) -> None:
        aside = one.with_suffix(".aside")
        one.rename(aside)
        other.rename(one)
        aside.rename(other)

    def pages_flipped(self, segment: int) -> list[int]:
        ruined = self.some(20)
        for place in ruined:
            self.flip(self.blocks(segment), place * STRIDE + HEADER_BYTES, SIZE)
        return ruined

    def headers_flipped(self, segment: int) -> list[int]:
        ruined = self.some(20)
        for place in ruined:
            self.flip(self.blocks(segment), place * STRIDE, HEADER_BYTES)
        return ruined

    def cut_in_a_page(self, segment: int) -> list[int]:
        return self.cut(segment, HEADER_BYTES + 5)

    def cut_in_a_header(self, segment: int) -> list[int]:
        return self.cut(segment, 5)

    def cut_between_blocks(self, segment: int) -> list[int]:
        return self.cut(segment, 0)

    def cut(self, segment: int, byte: int) -> list[int]:
        place = self.draw.randrange(EACH)
        os.truncate(self.blocks(segment), place * STRIDE + byte)
        return list(range(place, EACH))

    def zeroed(self, segment: int) -> list[int]:
        """As after a power failure: the file has its length, the bytes never came."""
        self.overwrite(self.blocks(segment), 7 * STRIDE + 300, bytes(4 * STRIDE))
        return [7, 8, 9, 10, 11]

    def list_flipped(self, segment: int) -> list[int]:
        for place in self.some(20):
            self.flip(self.headers(segment), place * HEADER_BYTES, HEADER_BYTES)
        return []

    def list_cut(self, segment: int) -> list[int]:
        os.truncate(self.headers(segment), self.draw.randrange(EACH * HEADER_BYTES))
        return []

    def list_deleted(self, segment: int) -> list[int]:
        self.headers(segment).unlink()
        return []

    def list_deleted_and_headers_flipped(self, segment: int) -> list[int]:
        self.headers(segment).unlink()
        return self.headers_flipped(segment)

    def blocks_deleted(self, segment: int) -> list[int]:
        self.blocks(segment).unlink()
        return list(range(EACH))

    def pages_exchanged(self, segment: int) -> list[int]:
        return self.exchanged_within(segment, HEADER_BYTES)

    def blocks_exchanged(self, segment: int) -> list[int]:
        return self.exchanged_within(segment, 0)

    def exchanged_within(self, segment: int, byte: int) -> list[int]:
        one, other = self.some(2)
        raw = self.blocks(segment).read_bytes()
        for here, there in ((one, other), (other, one)):
            moved = raw[there * STRIDE + byte : (there + 1) * STRIDE]
            self.overwrite(self.blocks(segment), here * STRIDE + byte, moved)
        return [one, other]

    def list_points_past_the_end(self, segment: int) -> list[int]:
        return self.list_forged(segment, offset=1 << 30)

    def list_overlaps(self, segment: int) -> list[int]:
        return self.list_forged(segment, offset=3 * STRIDE)

    def list_forged(self, segment: int, offset: int) -> list[int]:
        raw = self.headers(segment).read_bytes()
        header = next(decode(raw))
        assert header is not None
        self.overwrite(self.headers(segment), len(raw), encode(msgspec.structs.replace(header, offset=offset)))
        return []

    def blocks_swapped(self, segment: int) -> list[int]:
        self.exchange(self.blocks(segment), self.blocks(segment + 1))
        return list(range(2 * EACH))

    def lists_swapped(self, segment: int) -> list[int]:
        self.exchange(self.headers(segment), self.headers(segment + 1))
        return []

    def restamped(self, segment: int) -> list[int]:
        """Sound headers that claim blocks for another model than the one that computed them."""
        for path, stride in ((self.blocks(segment), STRIDE), (self.headers(segment), HEADER_BYTES)):
            for place in range(EACH):
                header = next(decode(path.read_bytes()[place * stride :][:HEADER_BYTES]))
                assert header is not None
                forged = msgspec.structs.replace(header, key=BlockKey(OTHER_MODEL, header.key.name))
                self.overwrite(path, place * stride, encode(forged))
        return list(range(EACH))


OTHER_MODEL = FINGERPRINT[::-1]
DAMAGES: Sequence[tuple[Callable[[Damage, int], list[int]], str]] = (  # with the reason why its blocks are refused
    (Damage.pages_flipped, "corrupt"),
    (Damage.headers_flipped, "corrupt"),
    (Damage.cut_in_a_page, "missing"),
    (Damage.cut_in_a_header, "missing"),
    (Damage.cut_between_blocks, "missing"),
    (Damage.zeroed, "corrupt"),
    (Damage.list_flipped, ""),
    (Damage.list_cut, ""),
    (Damage.list_deleted, ""),
    (Damage.list_deleted_and_headers_flipped, "missing"),
    (Damage.blocks_deleted, "missing"),
    (Damage.pages_exchanged, "corrupt"),
    (Damage.blocks_exchanged, "mismatch"),
    (Damage.list_points_past_the_end, ""),
    (Damage.list_overlaps, ""),
    (Damage.restamped, "missing"),
    (Damage.blocks_swapped, "mismatch"),
    (Damage.lists_swapped, ""),
)


def wide(directory: Path) -> DiskStore:
    return small(directory, blocks=EACH, segments=40)


def test_of_a_thousand_blocks_every_damaged_one_is_refused_and_every_other_served(tmp_path: Path) -> None:
    store = wide(tmp_path)
    put(store, range(1000))
    store.close()
    damage, expected, segment = Damage(tmp_path, random.Random(4)), ["right"] * 1000, 0
    for ruin, reason in DAMAGES:
        for place in ruin(damage, segment):
            expected[segment * EACH + place] = reason
        segment += 2 if "swapped" in ruin.__name__ else 1
    assert segment == 20
    store = wide(tmp_path)
    at_start = store.counts.copy()
    outcomes = [outcome(store, number) for number in range(1000)]

    assert outcomes == expected
    assert store.counts - at_start == Counter(expected) - Counter({"right": 1000})
    assert at_start["mismatch"] == 2 * EACH, "the swapped lists"
    assert at_start["missing"] >= EACH + 3 + 1, "the deleted file, the cut ones, the list that points past the end"
    assert at_start["corrupt"] > 20 + 1, "the flipped list, the overlap, headers flipped where there is no list"
    assert set(store.counts) <= set(LOST)
    assert numbered(k for k, _ in store.held() if k.fingerprint == FINGERPRINT) == [
        number for number in range(1000) if expected[number] == "right"
    ]
    store.close()


def test_what_was_computed_by_another_model_is_not_served_whatever_its_header_says(tmp_path: Path) -> None:
    store = wide(tmp_path)
    put(store, range(EACH))
    store.close()
    Damage(tmp_path, random.Random(5)).restamped(0)
    store = wide(tmp_path)

    assert len(store) == EACH
    for number in range(EACH):
        with pytest.raises(StoreError) as refused:
            store.get(key(number, OTHER_MODEL), memoryview(bytearray(SIZE)))
        assert refused.value.reason == "corrupt"
    assert (len(store), store.counts) == (0, {"corrupt": EACH})
    store.close()


def test_a_healed_list_is_sound_the_next_time(tmp_path: Path) -> None:
    store = wide(tmp_path)
    put(store, range(4 * EACH))
    store.close()
    damage = Damage(tmp_path, random.Random(6))
    damage.list_flipped(0)
    damage.list_cut(1)
    damage.list_deleted(2)
    wide(tmp_path).close()
    store = wide(tmp_path)

    assert not store.counts
    assert {outcome(store, number) for number in range(4 * EACH)} == {"right"}
    store.close()


def test_a_block_damaged_while_the_store_is_open_is_quarantined(tmp_path: Path) -> None:
    store = wide(tmp_path)
    put(store, range(3))
    Damage(tmp_path, random.Random(7)).flip(tmp_path / f"{0:010}{BLOCKS}", STRIDE + HEADER_BYTES, SIZE)

    assert [outcome(store, number) for number in (1, 1, 2)] == ["corrupt", "missing", "right"]
    assert (key(1) in store, store.counts) == (False, {"corrupt": 1, "missing": 1})
    put(store, [1])
    assert outcome(store, 1) == "right"
    store.close()
    store = wide(tmp_path)
    assert outcome(store, 1) == "right", "the newer copy counts"
    store.close()


def test_a_damaged_block_is_not_kept_when_its_segment_is_recycled(tmp_path: Path) -> None:
    store = small(tmp_path, blocks=6)
    put(store, range(48))
    damage = Damage(tmp_path, random.Random(8))
    damage.flip(tmp_path / f"{0:010}{BLOCKS}", 0, HEADER_BYTES)
    written = put(store, [48], lambda k: k in (key(0), key(1)))

    assert numbered(written.removed) == [0, 2, 3, 4, 5]
    assert store.counts == {"corrupt": 1}
    store.close()


def test_random_bytes_anywhere_in_any_file_never_make_a_wrong_page(tmp_path: Path) -> None:
    draw, whole, hurt = random.Random(9), tmp_path / "whole", tmp_path / "hurt"
    store = small(whole, blocks=3)
    put(store, range(12))
    store.close()
    for _ in range(60):
        shutil.copytree(whole, hurt)
        for path in draw.sample(sorted(hurt.glob("0*")), 3):
            raw = bytearray(path.read_bytes())
            at = draw.randrange(len(raw))
            raw[at : at + draw.randrange(200)] = draw.randbytes(draw.randrange(200))  # shifts what follows, too
            path.write_bytes(raw)
        store = small(hurt, blocks=3)
        assert {outcome(store, number) for number in range(12)} <= {"right", *LOST}
        assert put(store, range(12)).refused == {}
        assert {outcome(store, number) for number in range(12)} == {"right"}
        store.close()
        shutil.rmtree(hurt)


# Full, unreadable, removed.


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KB."""
    if os.geteuid():
        pytest.skip("mounting a small file system to fill needs root")
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this container may not mount a small file system to fill")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_disk_fuller_than_the_quota_says_costs_the_oldest_blocks_only(tiny_disk: Path) -> None:
    store = small(tiny_disk, blocks=20, segments=100)  # 1.5 MB
    alive: list[int] = []
    for number in range(0, 1000, 5):
        written = put(store, range(number, number + 5))
        alive = [n for n in [*alive, *range(number, number + 5)] if n not in numbered(written.removed)]
        assert written.refused == {}

    assert len(alive) > 200
    assert alive == list(range(alive[0], 1000))
    assert {outcome(store, number) for number in alive} == {"right"}
    assert store.counts == {"full": 1000 - len(alive)}
    store.close()
    store = small(tiny_disk, blocks=20, segments=100)
    assert {outcome(store, number) for number in alive} == {"right"}
    store.close()


def test_a_disk_filled_by_others_refuses_blocks_until_there_is_room_again(tiny_disk: Path) -> None:
    store = small(tiny_disk, blocks=20)
    put(store, range(5))
    (tiny_disk / "others").write_bytes(bytes(free_bytes(tiny_disk)))
    written = put(store, range(5, 105))

    assert set(written.refused.values()) == {"full"}
    assert written.removed == []
    assert {outcome(store, number) for number in range(5)} == {"right"}
    (tiny_disk / "others").unlink()
    assert put(store, range(5, 105)).refused == {}
    assert {outcome(store, number) for number in range(105)} == {"right"}
    store.close()


def free_bytes(directory: Path) -> int:
    free = os.statvfs(directory)
    return free.f_bavail * free.f_bsize


def test_a_read_only_file_system_is_refused_at_the_start(tiny_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)

    with pytest.raises(ConfigError, match=r"directory: cannot use .*Read-only file system; name one on a local disk"):
        small(tiny_disk)


def test_a_directory_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ConfigError, match=r"directory: cannot use .*file/store: Not a directory"):
        small(tmp_path / "file" / "store")


def test_a_removed_directory_is_made_again_and_what_was_in_it_is_told(tmp_path: Path) -> None:
    store = small(tmp_path / "store")
    put(store, range(3))
    shutil.rmtree(tmp_path / "store")
    written = put(store, [3])

    assert (numbered(written.removed), written.refused) == ([0, 1, 2], {})
    assert [outcome(store, number) for number in range(4)] == ["missing"] * 3 + ["right"]
    assert store.counts == {"io": 3, "missing": 3}
    store.close()
    assert numbered(k for k, _ in small(tmp_path / "store").held()) == [3]


def test_where_only_the_lock_was_removed_nothing_is_lost(tmp_path: Path) -> None:
    store = small(tmp_path)
    put(store, range(3))
    (tmp_path / LOCK).unlink()

    assert put(store, [3]) == Written()
    assert {outcome(store, number) for number in range(4)} == {"right"}
    with pytest.raises(ConfigError, match="another process has it"):
        small(tmp_path)
    store.close()


def test_a_directory_that_cannot_be_made_again_refuses_blocks_until_it_can(tmp_path: Path) -> None:
    store = small(tmp_path / "store")
    put(store, [0])
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "store").touch()

    assert put(store, [1]) == Written([key(0)], {key(1): "io"})
    assert put(store, [1]) == Written([], {key(1): "io"})
    (tmp_path / "store").unlink()
    assert put(store, [1]) == Written()
    assert outcome(store, 1) == "right"
    store.close()


def test_a_directory_that_another_took_meanwhile_stays_the_others(tmp_path: Path) -> None:
    store = small(tmp_path / "store")
    shutil.rmtree(tmp_path / "store")
    other = small(tmp_path / "store")

    assert put(store, [1]).refused == {key(1): "io"}
    other.close()
    assert put(store, [1]).refused == {}
    store.close()


def test_files_deleted_while_the_store_is_open_cost_no_block_put_later(tmp_path: Path) -> None:
    store = small(tmp_path)
    put(store, range(6))
    for path in tmp_path.glob("0*"):
        path.unlink()

    assert {outcome(store, number) for number in range(6)} == {"right"}, "open files can still be read"
    put(store, [6, 7])
    store.close()
    store = small(tmp_path)
    assert [outcome(store, number) for number in range(8)] == ["missing"] * 6 + ["right"] * 2
    store.close()


def test_a_block_that_cannot_be_read_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = small(tmp_path)
    put(store, [1, 2])
    with monkeypatch.context() as patched:
        patched.setattr("os.preadv", fails(errno.EIO))
        assert outcome(store, 1) == "io"

    assert [outcome(store, 1), outcome(store, 2)] == ["missing", "right"]
    assert store.counts == {"io": 1, "missing": 1}
    store.close()


@pytest.mark.parametrize("call", [1, 2], ids=["blocks", "headers"])
def test_after_a_failed_write_the_next_goes_to_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    store = small(tmp_path)
    put(store, [0])
    with monkeypatch.context() as patched:
        patched.setattr("os.pwritev", fails(errno.EIO, call))
        assert put(store, [1, 2]) == Written([], {key(1): "io", key(2): "io"})
    put(store, [3])

    assert [outcome(store, number) for number in range(4)] == ["right", "missing", "missing", "right"]
    assert len(list(tmp_path.glob(f"*{BLOCKS}"))) == 2
    store.close()
    store = small(tmp_path)
    assert numbered(k for k, _ in store.held()) == [0, 3]
    store.close()


def test_a_disk_that_fails_for_long_leaves_no_files_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = small(tmp_path)
    put(store, [0])
    with monkeypatch.context() as patched:
        patched.setattr("os.pwritev", fails(errno.EIO))
        put(store, [1])
        opened = len(os.listdir("/proc/self/fd"))
        for number in range(2, 20):
            assert put(store, [number]).refused == {key(number): "io"}

    assert len(os.listdir("/proc/self/fd")) == opened
    assert len(list(tmp_path.glob(f"*{BLOCKS}"))) == 1
    assert put(store, [20]).refused == {}
    assert [outcome(store, number) for number in (0, 20)] == ["right", "right"]
    store.close()


@pytest.mark.parametrize("call", [1, 2], ids=["blocks", "headers"])
def test_without_space_the_oldest_segment_goes_and_the_write_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    store = small(tmp_path)
    put(store, range(6))
    with monkeypatch.context() as patched:
        patched.setattr("os.pwritev", fails(errno.ENOSPC, call))
        assert numbered(put(store, [6]).removed) == [0, 1, 2, 3]

    assert [outcome(store, number) for number in range(3, 7)] == ["missing", "right", "right", "right"]
    assert store.counts["full"] == 4
    store.close()


def fails(code: int, call: int = 0) -> Callable[..., int]:
    """`os.preadv` or `os.pwritev` with an error at one call, or at every call if 0."""
    real, calls = os.pwritev, 0

    def act(*arguments: Any) -> int:
        nonlocal calls
        calls += 1
        if call in (0, calls):
            raise OSError(code, os.strerror(code))
        return real(*arguments)

    return act


def test_a_disk_that_takes_some_of_a_write_is_given_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev

    def some(fd: int, parts: Sequence[Any], offset: int) -> int:
        return real(fd, [b"".join(parts)[:200]], offset)

    monkeypatch.setattr("os.pwritev", some)
    store = small(tmp_path)
    put(store, range(3))

    assert {outcome(store, number) for number in range(3)} == {"right"}
    store.close()


# Owned.


def test_a_second_owner_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    size_bytes, segment_bytes = 20_000_000, 4_000_000
    with running("-m", "tests.store.filler", str(tmp_path), str(size_bytes), str(segment_bytes), "0") as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        with pytest.raises(ConfigError, match="directory: another process has it, and a store has one owner"):
            DiskStore(tmp_path, size_bytes, segment_bytes=segment_bytes)
        owner.kill()
        owner.wait(30)
    store = DiskStore(tmp_path, size_bytes, segment_bytes=segment_bytes)

    assert outcome(store, 0, PAGE_BYTES) == "right"
    store.close()
