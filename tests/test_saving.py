"""A checkpoint is the old one or the new one, whatever happens while it is written."""

from __future__ import annotations

import errno
import os
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import multihead as mh
from scripts import printed

pytestmark = pytest.mark.timeout(120)
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="signals and limits")


def layer(seed: int) -> mh.MultiheadAttention:
    return mh.MultiheadAttention(16, 2, seed=seed)


def seed_in(path: Path) -> int:
    """Which layer a file holds; all of it must be that one's."""
    found = mh.checkpoint.load(path)
    seed = found.rng_state[0]
    for name, x in layer(seed).parameters().items():
        np.testing.assert_array_equal(found.parameters()[name], x)
    return seed


# A process that can write no file beyond a number of bytes is killed there (SIGXFSZ), or is told
# so as of a full disk, where it does not want to be killed.
KILLED = """
import os, resource, signal, sys
import multihead as mh
folder = sys.argv[1]
path = os.path.join(folder, "layer")
old, new = (mh.MultiheadAttention(16, 2, seed=seed) for seed in (1, 2))
mh.checkpoint.save(old, path)
size = os.path.getsize(path)
before = open(path, "rb").read()
ends = {}
for n in sorted({0, 1, 7, 8, 9, size - 1, size, size + 1, *range(0, size, 61)}):
    for killed in (True, False):
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if killed else signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (n, n))
            try:
                mh.checkpoint.save(new, path)
            except OSError as error:
                os._exit(3 if os.path.samefile(error.filename, path) else 4)
            os._exit(0)
        end = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert end == (0 if n >= size else -signal.SIGXFSZ if killed else 3), (n, killed, end)
        left = sorted(os.listdir(folder))
        if n >= size:
            assert mh.checkpoint.load(path).rng_state[0] == 2
            mh.checkpoint.save(old, path)
        assert open(path, "rb").read() == before, n
        assert left[-1] == "layer" and len(left) == 1 + (killed and n < size), (n, killed, left)
        for name in left[:-1]:
            os.unlink(os.path.join(folder, name))
        ends[end] = ends.get(end, 0) + 1
print(len(ends), min(ends.values()) > 3)
"""


@LINUX
def test_a_kill_or_a_full_disk_at_any_byte_leaves_the_old_file(tmp_path: Path) -> None:
    assert printed(KILLED, str(tmp_path)) == "3 True\n"


AT_RANDOM = """
import os, random, signal, sys, time
import numpy as np
import multihead as mh
folder = sys.argv[1]
path = os.path.join(folder, "layer")
layers = [mh.MultiheadAttention(96, 2, seed=seed) for seed in (0, 1)]
mh.checkpoint.save(layers[0], path)
start = time.perf_counter()
mh.checkpoint.save(layers[0], path)
took = time.perf_counter() - start
draw, found = random.Random(1), set()
for _ in range(30):
    child = os.fork()
    if child == 0:
        while True:
            for layer in reversed(layers):
                mh.checkpoint.save(layer, path)
    time.sleep(draw.uniform(0, 6 * took))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kept = mh.checkpoint.load(path)
    seed = kept.rng_state[0]
    found.add(seed)
    for name, x in layers[seed].parameters().items():
        assert np.array_equal(kept.parameters()[name], x), (seed, name)
others = [name for name in os.listdir(folder) if name != "layer"]
assert all(name.startswith(".multihead-") and name.endswith(".tmp") for name in others), others
print(len(found))
"""


@LINUX
def test_kills_at_random_leave_one_of_the_two(tmp_path: Path) -> None:
    assert printed(AT_RANDOM, str(tmp_path)) in ("1\n", "2\n")


@pytest.mark.parametrize("name", ["chmod", "fsync", "replace"])
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        PermissionError(errno.EACCES, "Permission denied"),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_the_system_leaves_the_old_file(
    name: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "layer"
    mh.checkpoint.save(layer(1), path)

    def fails(*_: Any, **__: Any) -> Any:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(os, name, fails)
        with pytest.raises(type(error)):
            mh.checkpoint.save(layer(2), path)
    assert os.listdir(tmp_path) == ["layer"]
    assert seed_in(path) == 1
    mh.checkpoint.save(layer(2), path)
    assert seed_in(path) == 2


@pytest.mark.skipif(os.name != "posix", reason="folders are not opened elsewhere")
@pytest.mark.parametrize("again", [False, True], ids=["new", "over"])
def test_the_file_is_on_disk_before_its_name_and_the_name_before_the_end(
    again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, replace, fsync = tmp_path / "layer", os.replace, os.fsync
    small = mh.MultiheadAttention(2, 1, seed=2)  # all of it fits into the buffer of a file
    if again:
        mh.checkpoint.save(layer(1), path)
    seen: list[tuple[str, int, int]] = []

    def noted(name: str, of: Any) -> None:
        found = os.stat(of)
        seen.append((name, found.st_ino, found.st_size if stat.S_ISREG(found.st_mode) else 0))

    def notes_fsync(of: int) -> None:
        noted("fsync", of)
        fsync(of)

    def notes_replace(made: str, target: str) -> None:
        noted("replace", made)
        replace(made, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", notes_fsync)
        patched.setattr(os, "replace", notes_replace)
        mh.checkpoint.save(small, path)
    file = (path.stat().st_ino, path.stat().st_size)
    assert seen == [("fsync", *file), ("replace", *file), ("fsync", tmp_path.stat().st_ino, 0)]
    assert mh.checkpoint.load(path).rng_state[0] == 2


def test_a_folder_that_is_not_there_is_an_error_of_the_system(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere" / "layer", tmp_path):
        with pytest.raises(OSError, match=str(path)):
            mh.checkpoint.save(layer(0), path)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names")
def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe, copy = tmp_path / "pipe", tmp_path / "copy"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_bytes)
        mh.checkpoint.save(layer(4), pipe)
        copy.write_bytes(read.result())
    assert pipe.is_fifo()
    assert seed_in(copy) == 4


@pytest.mark.skipif(os.name != "posix", reason="permissions and links")
def test_permissions_stay_and_links_are_followed(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path, link, plain = folder / "layer", tmp_path / "link", tmp_path / "plain"
    mh.checkpoint.save(layer(1), path)
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    path.chmod(0o640)
    link.symlink_to("folder/layer")
    mh.checkpoint.save(layer(2), link)
    assert link.is_symlink()
    assert seed_in(path) == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    dangling = tmp_path / "dangling"
    dangling.symlink_to("folder/other")
    mh.checkpoint.save(layer(3), os.fsencode(dangling))  # type: ignore[arg-type]
    assert seed_in(folder / "other") == 3


def test_a_cache_is_saved_likewise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache = tmp_path / "cache", mh.KVCache(1, 1, 4, 2)
    mh.checkpoint.save_cache(cache, path)
    cache.lengths = 2
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", lambda *_: os.stat(tmp_path / "nowhere"))
        with pytest.raises(FileNotFoundError):
            mh.checkpoint.save_cache(cache, path)
    assert os.listdir(tmp_path) == ["cache"]
    assert mh.checkpoint.load_cache(path).lengths.tolist() == [0]
    mh.checkpoint.save_cache(cache, path)
    assert mh.checkpoint.load_cache(path).lengths.tolist() == [2]
