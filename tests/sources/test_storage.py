"""Options that stay secret, listing and reading files here and elsewhere, and trying again."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from datas3_ray.errors import UsageError
from datas3_ray.sources import SampleError, parse_source, remote
from datas3_ray.sources.storage import (
    PassingError,
    StorageOptions,
    find_files,
    iter_folder,
    list_folder,
    open_file,
    read_file,
    unreadable,
)

SECRET = "open-sesame-4711"


class Flaky(MemoryFileSystem):
    """A store whose next reads fail."""

    protocol = "flaky"
    store: dict[str, Any] = {}
    pseudo_dirs = [""]
    failures: list[Exception] = []

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return MemoryFileSystem._strip_protocol(path.replace("flaky://", "memory://"))

    def _maybe_fail(self) -> None:
        if Flaky.failures:
            raise Flaky.failures.pop(0)

    def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> Any:
        self._maybe_fail()
        return super().cat_file(path, start=start, end=end)

    def _open(self, *arguments: Any, **options: Any) -> Any:
        self._maybe_fail()
        return super()._open(*arguments, **options)

    def find(self, *arguments: Any, **options: Any) -> Any:
        self._maybe_fail()
        return super().find(*arguments, **options)


fsspec.register_implementation("flaky", Flaky, clobber=True)


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Iterator[Flaky]:
    pauses: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", pauses.append)
    store = fsspec.filesystem("flaky")
    store.pipe("/bucket/a/1.jpg", b"one")
    store.pauses = pauses
    yield store
    Flaky.failures.clear()
    Flaky.store.clear()


def test_options_are_a_mapping_whose_values_do_not_show() -> None:
    options = StorageOptions.parse({"key": SECRET, "anon": False, "client_kwargs": {"endpoint_url": "http://x:9000"}})
    assert dict(options) == {"key": SECRET, "anon": False, "client_kwargs": {"endpoint_url": "http://x:9000"}}
    assert repr(options) == str(options) == f"{options}" == "StorageOptions(key, anon, client_kwargs)"
    assert pickle.loads(pickle.dumps(options)) == options and hash(options) == hash(StorageOptions(dict(options)))
    assert options.scrub(f"bad {SECRET} at http://x:9000, False") == "bad *** at ***, False"
    assert StorageOptions.parse(None) == {} and StorageOptions.parse(options) is options


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (SECRET, "expected a mapping.*got str"),
        ([SECRET], "got list"),
        ({"key": [SECRET]}, "key is list"),
        ({"client_kwargs": {"token": {SECRET}}}, "client_kwargs.token is set"),
        ({5: SECRET}, "the name '5' is not text"),
    ],
)
def test_errors_about_options_do_not_show_them(wrong: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words) as error:
        parse_source({"webdataset": "a.tar", "storage_options": wrong})
    assert SECRET not in str(error.value) and error.value.__cause__ is None


def test_what_a_store_says_of_its_options_is_scrubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(uri: str, **options: Any) -> Any:
        raise RuntimeError(f"the token {options['token']} is expired")

    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    for call in (
        lambda: find_files(["s3://bucket/*.tar"], {"token": SECRET}),
        lambda: list_folder("s3://bucket", {"token": SECRET}),
        lambda: read_file("s3://bucket/a.jpg", {"token": SECRET}),
    ):
        with pytest.raises((UsageError, SampleError), match=r"the token \*\*\* is expired") as error:
            call()
        assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3://bucket/a.jpg", r"its package is not installed; pip install 'datas3-ray\[s3\]'\."),
        ("gs://bucket/a.jpg", r"its package is not installed; pip install gcsfs\."),
        ("odd://a.jpg", "install this and that and more"),
    ],
)
def test_a_missing_package_is_one_sentence(uri: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(uri: str, **options: Any) -> Any:
        raise ImportError("install this and that\nand more")

    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    with pytest.raises(UsageError, match=words) as error:
        open_file(uri)
    assert "\n" not in str(error.value)


def test_errors_of_patterns_name_what_they_are_for(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(UsageError, match="^manifest: .*matches no file; .*holds 1 .csv file, such as 'a.csv'"):
        find_files([str(tmp_path / "*.json")], what="manifest")
    with pytest.raises(UsageError, match=r"^coco: .*is a folder; write '.*/\*\.csv'"):
        find_files([str(tmp_path)], what="coco")


def test_folders_are_listed_without_what_is_hidden(tmp_path: Path) -> None:
    for name in ("b/1.jpg", "a/x/2.jpg", ".git/3.jpg", "a/.4.jpg", "__MACOSX/5.jpg", "6.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * 7)
    os.symlink(tmp_path / "b", tmp_path / "a" / "link")
    os.symlink(tmp_path, tmp_path / "a" / "loop")
    os.symlink(tmp_path / "gone.jpg", tmp_path / "a" / "dangling.jpg")
    files = list_folder(str(tmp_path))
    names = [file.uri.removeprefix(f"{tmp_path}/") for file in files]
    assert names == ["6.jpg", "a/dangling.jpg", "a/x/2.jpg", "b/1.jpg"]
    assert files.pop(1)[1:] == (0, "missing")
    assert {file.size for file in files} == {7} and all(file.fingerprint.startswith("7-") for file in files)
    assert [file.uri for file in iter_folder(f"file://{tmp_path}", deep=False)] == [str(tmp_path / "6.jpg")]


def test_a_folder_that_is_linked_twice_has_one_name_whatever_the_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("outside/x/1.jpg", "top/a/2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"x")
    for name, target in (("c", "outside"), ("b", "outside"), ("0", "top/a")):
        os.symlink(tmp_path / target, tmp_path / "top" / name)
    scandir = os.scandir
    for backwards in (False, True):

        def ordered(path: str, backwards: bool = backwards) -> Any:
            with scandir(path) as entries:
                return contextlib.nullcontext(sorted(entries, key=lambda entry: entry.name, reverse=backwards))

        monkeypatch.setattr(os, "scandir", ordered)
        uris = [file.uri for file in list_folder(str(tmp_path / "top"))]
        assert uris == [f"{tmp_path}/top/a/2.jpg", f"{tmp_path}/top/b/x/1.jpg"]


def test_folders_in_stores_are_listed_as_local_ones(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    base = f"/{tmp_path.name}"
    try:
        for name in ("b/1.jpg", "a/x/2.jpg", "a/.4.jpg", ".git/3.jpg", "6.jpg"):
            memory.pipe(f"{base}/{name}", b"x" * 7)
        memory.pipe(f"{base}-other/7.jpg", b"x")
        files = list_folder(f"memory://{base}")
        assert [file.uri for file in files] == [f"memory://{base}/{name}" for name in ("6.jpg", "a/x/2.jpg", "b/1.jpg")]
        assert {file.size for file in files} == {7} and len({file.fingerprint for file in files}) == 3
        assert [file.uri for file in iter_folder(f"memory://{base}/", deep=False)] == [f"memory://{base}/6.jpg"]
        for wrong, words in (("/nowhere", "holds no file or does not exist"), ("/6.jpg", "is a file, not a folder")):
            with pytest.raises(UsageError, match=f"^folder: .*{words}"):
                list_folder(f"memory://{base}{wrong}")
    finally:
        memory.rm(base, recursive=True)
        memory.rm(f"{base}-other", recursive=True)


@pytest.mark.parametrize(("name", "words"), [("gone", "does not exist"), ("file", "is a file, not a folder")])
def test_folders_that_are_none(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match=f"^yolo: .*{words}"):
        list_folder(str(tmp_path / name), what="yolo")


def test_files_are_read_whole_or_not_at_all(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    base = f"/{tmp_path.name}"
    (tmp_path / "a.jpg").write_bytes(b"x" * 100)
    (tmp_path / "empty.jpg").write_bytes(b"")
    memory.pipe(f"{base}/a.jpg", b"x" * 100)
    memory.pipe(f"{base}/empty.jpg", b"")
    try:
        for root in (str(tmp_path), f"file://{tmp_path}", f"memory://{base}"):
            assert read_file(f"{root}/a.jpg", max_bytes=100) == b"x" * 100
            assert read_file(f"{root}/empty.jpg") == b""
            with open_file(f"{root}/a.jpg") as file:
                file.seek(90)
                assert file.read(100) == b"x" * 10
            for name, most, reason, words in (
                ("a.jpg", 99, "too_large", "more than max_bytes = 99"),
                ("gone.jpg", 99, "unreadable_file", "is not there"),
            ):
                with pytest.raises(SampleError, match=words) as error:
                    read_file(f"{root}/{name}", max_bytes=most)
                assert error.value.reason == reason and name in error.value.message
        with pytest.raises(SampleError) as error:
            read_file(str(tmp_path))
        assert error.value.reason == "unreadable_file"
        with pytest.raises(SampleError, match="Protocol not known"):
            read_file("nosuch://a")
    finally:
        memory.rm(base, recursive=True)


@pytest.mark.parametrize("attempts", [1, 2])
@pytest.mark.parametrize(
    "call",
    [
        lambda: read_file("flaky://bucket/a/1.jpg"),
        lambda: open_file("flaky://bucket/a/1.jpg").read(),
        lambda: read_file(list_folder("flaky://bucket")[0].uri),
    ],
)
def test_what_fails_twice_is_tried_again(flaky: Any, call: Callable[[], bytes], attempts: int) -> None:
    Flaky.failures = [OSError("503 slow down")] * attempts
    assert call() == b"one"
    assert flaky.pauses[:1] == [0.0] and [pause for pause in flaky.pauses if pause] == [0.5, 1.0][:attempts]


def test_what_fails_three_times_has_failed(flaky: Any) -> None:
    Flaky.failures = [OSError("503 slow down")] * 3
    with pytest.raises(PassingError, match="503 slow down"):
        read_file("flaky://bucket/a/1.jpg")
    Flaky.failures = [OSError("503 slow down")] * 3
    with pytest.raises(UsageError, match="cannot be listed: OSError: 503"):
        list_folder("flaky://bucket")


@pytest.mark.parametrize("error", [FileNotFoundError("gone"), PermissionError("no")])
def test_what_stays_is_not_tried_again(flaky: Any, error: Exception) -> None:
    Flaky.failures = [error]
    with pytest.raises(SampleError) as raised:
        read_file("flaky://bucket/a/1.jpg")
    assert not isinstance(raised.value, PassingError) and not any(flaky.pauses)
    assert read_file("flaky://bucket/a/1.jpg") == b"one"


def test_a_read_that_fails_goes_on_where_it_was(flaky: Any) -> None:
    flaky.pipe("/bucket/long", bytes(range(200)))
    file: Any = open_file("flaky://bucket/long")
    inner, broken = file._file, [True]
    real = inner.read

    def read(size: int = -1) -> bytes:
        data = real(size)
        if broken:
            broken.pop()
            raise OSError("connection reset")
        return bytes(data)

    inner.read = read
    file.seek(10)
    assert file.read(5) + file.read(5) == bytes(range(10, 20)) and file.tell() == 20


def test_a_web_server_that_fails_is_not_waited_for() -> None:
    down = ConnectionError("connection refused")
    assert isinstance(unreadable("s3://bucket/a.jpg", down), PassingError)
    assert not isinstance(unreadable("https://example.org/a.jpg", down), PassingError)
    assert not isinstance(unreadable("/data/a.jpg", OSError(5, "Input/output error")), PassingError)
