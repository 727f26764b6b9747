"""Downloads from a server that lies, breaks off, redirects and is slow."""

import hashlib
import urllib.request
from pathlib import Path

import pytest

from tests.servers import Page, serve
from universeg_jax import download as module
from universeg_jax.download import DownloadError, cache_folder, check_address, download, read_small

DATA = bytes(range(256)) * 400


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "WAIT", 0.0)
    with serve() as running:
        running.pages["/a"] = Page(DATA)
        yield running


def test_a_file_appears_whole(server, tmp_path):
    for checksum in (sha256(DATA), sha256(DATA).upper().replace("SHA", "sha"), f"md5:{hashlib.md5(DATA).hexdigest()}"):
        target = tmp_path / checksum[-5:] / "a"
        download(f"{server.url}/a", target, checksum)
        assert target.read_bytes() == DATA
        assert [path.name for path in target.parent.iterdir()] == ["a"]


def test_another_content_is_removed(server, tmp_path):
    for url in ("/a", "/longer"):
        server.pages["/longer"] = Page(DATA + b"more", announced=len(DATA) - 1)
        with pytest.raises(DownloadError, match="its sha256 is .*, not 00; it was removed"):
            download(server.url + url, tmp_path / "a", "sha256:00")
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_continued(server, tmp_path, ranges):
    server.pages["/a"] = Page(DATA, cuts=2, ranges=ranges)
    download(f"{server.url}/a", tmp_path / "a", sha256(DATA))
    assert (tmp_path / "a").read_bytes() == DATA
    asked = [at for _, at in server.asked]
    half = len(DATA) // 2
    assert asked == ["", f"bytes={half}-", f"bytes={half + half // 2 if ranges else half}-"]


def test_what_arrived_is_kept_for_the_next_call(server, tmp_path):
    server.pages["/a"] = Page(DATA, cuts=3)
    with pytest.raises(DownloadError, match=r"it ended after [\d,]+ of 102,400 bytes; 89,600 bytes are kept"):
        download(f"{server.url}/a", tmp_path / "a", sha256(DATA))
    assert [path.name for path in tmp_path.iterdir()] == ["a.part"]
    server.asked.clear()
    download(f"{server.url}/a", tmp_path / "a", sha256(DATA))
    assert server.asked == [("/a", "bytes=89600-")]
    assert (tmp_path / "a").read_bytes() == DATA


def test_a_part_that_is_already_whole_is_taken_and_one_of_another_file_is_not(server, tmp_path):
    (tmp_path / "a.part").write_bytes(DATA)
    download(f"{server.url}/a", tmp_path / "a", sha256(DATA))
    assert (tmp_path / "a").read_bytes() == DATA
    (tmp_path / "b.part").write_bytes(b"another")
    with pytest.raises(DownloadError, match="it was removed"):
        download(f"{server.url}/a", tmp_path / "b", sha256(DATA))
    download(f"{server.url}/a", tmp_path / "b", sha256(DATA))
    assert (tmp_path / "b").read_bytes() == DATA


def test_a_length_that_is_a_lie_is_seen(server, tmp_path):
    server.pages["/a"] = Page(DATA, announced=len(DATA) + 10, ranges=False)
    with pytest.raises(DownloadError, match="it ended after 102,400 of 102,410 bytes"):
        download(f"{server.url}/a", tmp_path / "a", sha256(DATA))


@pytest.mark.parametrize("announced", [None, -1, 10])
def test_too_much_is_refused_whatever_was_announced(server, tmp_path, announced):
    server.pages["/a"] = Page(DATA, announced=announced)
    expected = "its sha256 is" if announced == 10 else "at most 50,000 are taken"  # no more than announced is read
    with pytest.raises(DownloadError, match=expected):
        download(f"{server.url}/a", tmp_path / "a", sha256(DATA), limit=50_000)
    assert not list(tmp_path.iterdir())


def test_a_slow_server_is_waited_for_and_a_silent_one_is_not(server, tmp_path, monkeypatch):
    server.pages["/a"] = Page(DATA, pause=0.1)
    download(f"{server.url}/a", tmp_path / "a", sha256(DATA))
    assert (tmp_path / "a").read_bytes() == DATA
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    server.pages["/a"] = Page(DATA, pause=1)
    with pytest.raises(DownloadError, match="timed out"):
        download(f"{server.url}/a", tmp_path / "b", sha256(DATA))


def test_redirects_are_followed_within_https_alone(server, tmp_path):
    server.pages["/moved"] = Page(status=302, location="/a")
    download(f"{server.url}/moved", tmp_path / "a", sha256(DATA))
    for location in ("http://example.invalid/a", "ftp://example.invalid/a", "file:///etc/hostname"):
        server.pages["/away"] = Page(status=302, location=location)
        with pytest.raises(DownloadError, match=f"{location}.*(only https|not allowed)"):
            download(f"{server.url}/away", tmp_path / "b", sha256(DATA))
    server.pages["/circle"] = Page(status=302, location="/circle")
    with pytest.raises(DownloadError, match="infinite loop"):
        download(f"{server.url}/circle", tmp_path / "b", sha256(DATA))
    request = urllib.request.Request("https://example.invalid/a")
    for location in ("http://example.invalid/a", f"{server.url}/a"):  # not even to this machine
        with pytest.raises(DownloadError, match="which is not https: refused"):
            module._Redirects().redirect_request(request, None, 302, "", {}, location)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("status", [403, 404, 500])
def test_an_error_of_the_server_is_named(server, tmp_path, status):
    server.pages["/a"] = Page(status=status)
    with pytest.raises(DownloadError, match=f"/a cannot be downloaded: HTTP Error {status}"):
        download(f"{server.url}/a", tmp_path / "a", sha256(DATA))
    assert len(server.asked) == (1 if status < 500 else module.ATTEMPTS)
    with pytest.raises(DownloadError, match="refused"):
        download("http://127.0.0.1:9/a", tmp_path / "a", sha256(DATA))


def test_addresses():
    for good in ("https://example.org/a", "http://localhost:80/a", "http://127.0.0.1/a", "http://[::1]:8/a"):
        check_address(good)
    for bad in ("http://example.org/a", "http://localhost.example.org/a", "file:///a", "ftp://localhost/a", "a"):
        with pytest.raises(DownloadError, match="only https"):
            check_address(bad)


def test_a_small_file_is_read_or_absent(server):
    assert read_small(f"{server.url}/a", 4) == DATA[:4]
    assert read_small(f"{server.url}/b") is None
    server.pages["/a"] = Page(status=500)
    with pytest.raises(DownloadError, match="500"):
        read_small(f"{server.url}/a")


def test_the_cache_lies_where_the_user_wants_it(monkeypatch):
    monkeypatch.delenv("UNIVERSEG_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "universeg_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/universeg_jax")
    monkeypatch.setenv("UNIVERSEG_CACHE", "~/mine")
    assert cache_folder() == Path.home() / "mine"
