"""Downloads: checked, unpacked once, and nothing left of a bad one."""

import hashlib
import io
import tarfile
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.servers import Page, Server, serve
from universeg_jax import download as transfer
from universeg_jax.data import download
from universeg_jax.data.download import fetch
from universeg_jax.data.source import Download, SourceError, find_sources
from universeg_jax.errors import UserError
from universeg_jax.reports.files import lock


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(transfer, "WAIT", 0.0)
    with serve() as running:
        yield running


def archive(server: Server, file: str, names: dict[str, bytes], kind: str) -> Download:
    path = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as opened:
            for name, contents in names.items():
                opened.writestr(name, contents)
    else:
        with tarfile.open(fileobj=path, mode="w") as opened:
            for name, contents in names.items():
                info = tarfile.TarInfo(name)
                info.size = len(contents)
                opened.addfile(info, io.BytesIO(contents))
    server.pages[f"/{file}"] = Page(path.getvalue())
    return Download(f"{server.url}/{file}", f"sha256:{hashlib.sha256(path.getvalue()).hexdigest()}")


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_download_is_checked_and_unpacked_once(server, tmp_path, monkeypatch, kind):
    source = replace(find_sources("lits")[0], downloads=(archive(server, f"a.{kind}", {"in/a.txt": b"x"}, kind),))
    folder = fetch(source, tmp_path / "data")
    assert [path.read_text() for path in folder.rglob("*.txt")] == ["x"]
    monkeypatch.setattr(download, "_download", None)  # not called again
    assert fetch(source, tmp_path / "data") == folder
    assert sorted(path.name for path in folder.iterdir()) == [".lock", f"a.{kind}.unpacked"]
    with lock(folder), pytest.raises(UserError, match="another process works in"):
        fetch(source, tmp_path / "data")


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_bad_download_leaves_nothing(server, tmp_path, monkeypatch, kind):
    good = archive(server, f"a.{kind}", {"in/a.txt": b"x"}, kind)
    evil = archive(server, f"b.{kind}", {"in/a.txt": b"x", "../../evil.txt": b"y"}, kind)
    source = find_sources("lits")[0]
    for wrong, word in (
        (replace(good, checksum="md5:0"), "its md5 is .* not 0; it was removed"),
        (replace(good, url=good.url + "x"), "cannot be downloaded"),
        (evil, "would lie outside the folder"),
    ):
        with pytest.raises(SourceError, match=word):
            fetch(replace(source, downloads=(wrong,)), tmp_path / "data")
        assert not list((tmp_path / "data").rglob("*.txt"))
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(SourceError, match="unpacked it has 1 bytes; the disk has 0"):
        fetch(replace(source, downloads=(good,)), tmp_path / "data")
    assert not (tmp_path / "evil.txt").exists()
