"""What breaks on Windows and macOS, as far as it can be seen from here."""

import ast
import io
import subprocess
import sys
from pathlib import Path

import pytest

import train
from universeg_jax import cli
from universeg_jax.configuration import find_config, load_config
from universeg_jax.reports.files import LockedError, lock, lock_file

ROOT = Path(__file__).parents[1]
SOURCES = [*sorted((ROOT / "universeg_jax").rglob("*.py")), ROOT / "train.py", ROOT / "eval.py"]
TEXT = ("read_text", "write_text")
POSIX = {"fcntl", "resource", "pwd", "grp", "termios"}  # modules that Windows lacks
NO_NAME = set('\\:*?"<>|')  # characters of no file name on Windows


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            yield node, getattr(node.func, "attr", getattr(node.func, "id", ""))


def opens_text(node, name):
    """True for open(path, "w") and path.open("w"), and their like without "b"."""
    others = ("Image", "gzip", "tarfile", "zipfile", "os", "opener")
    if name != "open" or ast.unparse(node.func).split(".")[0] in others:
        return False
    at = 0 if isinstance(node.func, ast.Attribute) else 1
    given = node.args[at] if len(node.args) > at else None
    mode = next((word.value for word in node.keywords if word.arg == "mode"), given)
    return mode is None or (isinstance(mode, ast.Constant) and "b" not in str(mode.value))


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_text_has_an_encoding(file):
    """Else Python takes the code page of the machine, which on Windows lacks "→" and most letters."""
    for node, name in calls(ast.parse(file.read_text(encoding="utf-8"))):
        if name in TEXT or opens_text(node, name):
            assert any(word.arg == "encoding" for word in node.keywords), f"{file.name}:{node.lineno}"


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_modules_that_windows_lacks_are_imported_under_a_condition(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in tree.body:  # at the top of a module, outside of any condition
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "")]
        assert not POSIX & set(names), f"{file.name}:{node.lineno}"
    assert '"fork"' not in ast.unparse(tree)


def test_files_of_the_clone_have_names_that_every_system_takes():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = listed.strip("\0").split("\0")
    assert len(names) == len({name.casefold() for name in names}) > 300
    assert not [name for name in names if NO_NAME & set(name) or name.endswith((".", " "))]


def test_a_lock_keeps_a_second_one_out(tmp_path):
    with lock(tmp_path):
        with (tmp_path / ".lock").open("wb") as file:
            assert not lock_file(file)
        with pytest.raises(LockedError, match="another process works in"), lock(tmp_path):
            pass
    with lock(tmp_path):
        pass


def test_output_that_a_stream_cannot_encode_is_escaped(monkeypatch):
    """A pipe on Windows has the code page cp1252."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    print("Łódź → 3")
    stream.flush()
    assert stream.buffer.getvalue().endswith(b"\\u0141\xf3d\\u017a \\u2192 3\n")


def test_configs_are_found_where_git_makes_no_links(tmp_path, monkeypatch):
    """Git for Windows checks a link out as a text file with its target."""
    (tmp_path / "configs").write_text("universeg_jax/configs")
    monkeypatch.chdir(tmp_path)
    assert find_config("configs/small.py") == ROOT / "universeg_jax" / "configs" / "small.py"
    assert load_config("configs/small.py:128").image_size == 128


@pytest.mark.skipif(sys.platform == "win32", reason="the clone and the temporary folder may lie on two drives")
def test_train_finds_them_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["train.py", "--config=configs/small.py:128", "--config", "configs/quickstart.py", "--config=my/own.py"]
    found = train.with_package_configs(argv)
    assert (found[0], found[2], found[4]) == ("train.py", "--config", "--config=my/own.py")
    spec = found[1].removeprefix("--config=")
    assert not Path(spec).is_absolute()
    assert load_config(spec).to_dict() == load_config("configs/small.py:128").to_dict()
    assert Path(found[3]).samefile(ROOT / "universeg_jax" / "configs" / "quickstart.py")
    monkeypatch.chdir(ROOT)
    assert train.with_package_configs(argv) == argv
