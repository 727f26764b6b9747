"""Weights at an address: by their hash, once, and nothing but safetensors."""

import hashlib
import io
import pickle
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from tests.servers import Page, serve
from universeg_jax import download as module
from universeg_jax.checkpoints import packaged, remote, store
from universeg_jax.checkpoints.packaged import CheckpointError
from universeg_jax.cli import main
from universeg_jax.download import DownloadError
from universeg_jax.prediction.predictor import Predictor

WEIGHTS = packaged.packaged()["small"].read_bytes()
HASH = hashlib.sha256(WEIGHTS).hexdigest()
FILE = "/w/my.safetensors"


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "WAIT", 0.0)
    monkeypatch.setenv("UNIVERSEG_CACHE", str(tmp_path / "cache"))
    with serve() as running:
        running.pages[FILE] = Page(WEIGHTS)
        yield running


def test_weights_are_downloaded_once_and_then_need_no_network(server):
    address = f"{server.url}{FILE}#sha256={HASH}"
    path = store.resolve(address)
    assert path.read_bytes() == WEIGHTS
    assert [where for where, _ in server.asked] == [FILE]
    server.pages.clear()
    assert store.resolve(address) == path
    assert store.resolve(f"{server.url}{FILE}") == path  # by the hash of the first download
    assert len(server.asked) == 1


def test_a_predictor_and_a_command_take_an_address(server, capsys):
    address = f"{server.url}{FILE}#sha256={HASH}"
    predictor = Predictor.from_checkpoint(address)
    assert packaged.params_hash(predictor.params) == packaged.read_header(packaged.packaged()["small"])["params_hash"]
    assert main(["checkpoint", f"{server.url}/w/none.safetensors#sha256={HASH}"]) == 1
    assert "none.safetensors cannot be downloaded: HTTP Error 404" in capsys.readouterr().err


def test_the_hash_beside_a_file_is_taken_and_kept(server):
    server.pages[FILE + ".sha256"] = Page(f"{HASH}  my.safetensors\n".encode())
    path = store.resolve(f"{server.url}{FILE}")
    changed = WEIGHTS[:-1] + b"\0"
    server.pages[FILE] = Page(changed)
    server.pages[FILE + ".sha256"] = Page(hashlib.sha256(changed).hexdigest().encode())
    assert store.resolve(f"{server.url}{FILE}") == path  # an address means the same weights until the user says so
    assert path.read_bytes() == WEIGHTS
    with pytest.raises(DownloadError, match=f"its sha256 is {hashlib.sha256(changed).hexdigest()}, not {'0' * 64}"):
        store.resolve(f"{server.url}{FILE}#sha256={'0' * 64}")


def test_another_hash_downloads_anew(server):
    store.resolve(f"{server.url}{FILE}#sha256={HASH}")
    flat = safetensors.numpy.load(WEIGHTS)
    metadata = {packaged.KEY: '{"params_hash": "0"}'}
    other = safetensors.numpy.save({name: np.zeros_like(x) for name, x in flat.items()}, metadata)
    server.pages[FILE] = Page(other)
    path = store.resolve(f"{server.url}{FILE}#sha256={hashlib.sha256(other).hexdigest()}")
    assert path.read_bytes() == other
    assert store.resolve(f"{server.url}{FILE}") == path
    with pytest.raises(CheckpointError, match="parameters do not match their hash"):
        packaged.read_file(path)


def test_without_a_hash_nothing_is_downloaded(server):
    for said in (None, b"no hash", b"abc123", b"\xff" * 64):
        server.pages.pop(FILE + ".sha256", None)
        if said is not None:
            server.pages[FILE + ".sha256"] = Page(said)
        with pytest.raises(CheckpointError, match="its sha256 is not known"):
            store.resolve(f"{server.url}{FILE}")
    assert FILE not in [where for where, _ in server.asked]


def test_a_file_that_changed_in_the_cache_is_named(server):
    path = store.resolve(f"{server.url}{FILE}#sha256={HASH}")
    path.write_bytes(WEIGHTS[:-1] + b"\0")
    with pytest.raises(CheckpointError, match="has changed since it was downloaded: delete it"):
        store.resolve(f"{server.url}{FILE}#sha256={HASH}")
    path.unlink()
    assert store.resolve(f"{server.url}{FILE}").read_bytes() == WEIGHTS


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was opened')",)


def zip_of(data):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        opened.writestr("data.pkl", data)
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [pickle.dumps(Evil()), zip_of(pickle.dumps(Evil())), b"", b"<html>", (2**62).to_bytes(8, "little") + b"{}"],
    ids=["pickle", "zip", "empty", "page", "huge header"],
)
def test_what_is_no_safetensors_file_is_removed(server, data, tmp_path):
    server.pages[FILE] = Page(data)
    with pytest.raises(CheckpointError, match="holds no weights of universeg_jax: my.safetensors cannot be read"):
        store.resolve(f"{server.url}{FILE}#sha256={hashlib.sha256(data).hexdigest()}")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_weights_of_another_program_are_named(server):
    other = safetensors.numpy.save({"a": np.zeros(3, np.float32)})
    server.pages[FILE] = Page(other)
    with pytest.raises(CheckpointError, match="holds no weights of universeg_jax: my.safetensors holds no config"):
        store.resolve(f"{server.url}{FILE}#sha256={hashlib.sha256(other).hexdigest()}")


def test_the_size_has_a_limit_that_can_be_raised(server, monkeypatch):
    address = f"{server.url}{FILE}#sha256={HASH}"
    monkeypatch.setenv("UNIVERSEG_MAX_WEIGHTS_MB", "1")
    with pytest.raises(DownloadError, match="at most 1,000,000 are taken"):
        store.resolve(address)
    monkeypatch.setenv("UNIVERSEG_MAX_WEIGHTS_MB", "much")
    with pytest.raises(CheckpointError, match="UNIVERSEG_MAX_WEIGHTS_MB=much: a number"):
        store.resolve(address)
    monkeypatch.delenv("UNIVERSEG_MAX_WEIGHTS_MB")
    assert store.resolve(address).exists()


def test_names_of_the_hub(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    for text, path in {
        "hf://me/weights": "/me/weights/resolve/main/model.safetensors",
        "hf://me/weights@v1": "/me/weights/resolve/v1/model.safetensors",
        "hf://me/weights/a/b.safetensors": "/me/weights/resolve/main/a/b.safetensors",
    }.items():
        assert remote.parse(text).url == server.url + path
        server.pages["/cdn"] = Page(WEIGHTS)
        server.pages[path] = Page(status=302, location="/cdn")
        assert store.resolve(f"{text}#sha256={HASH}").read_bytes() == WEIGHTS
    monkeypatch.delenv("HF_ENDPOINT")
    assert remote.parse("hf://me/w").url == "https://huggingface.co/me/w/resolve/main/model.safetensors"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("https://example.org/a.safetensors#md5=00", "only sha256= and 64 hexadecimal digits"),
        ("https://example.org/a.safetensors#sha256=00", "only sha256= and 64 hexadecimal digits"),
        ("https://example.org/a.pt", "only .safetensors files"),
        ("https://example.org/a.safetensors/", "only .safetensors files"),
        ("https://example.org/..%2F..%2Fa.safetensors", "only .safetensors files"),
        ("http://example.org/a.safetensors", "only https"),
        ("hf://me", "give hf://OWNER/NAME"),
        ("hf://me/", "give hf://OWNER/NAME"),
    ],
)
def test_an_address_that_is_not_taken(text, words):
    with pytest.raises((CheckpointError, DownloadError), match=words):
        store.resolve(text)
