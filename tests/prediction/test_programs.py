"""Programs that later processes need not trace: the same results, found again, traced anew where anything differs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.fixtures import random_params, tiny_config
from universeg_jax import Predictor
from universeg_jax.model.factory import MODELS, build_model, param_shapes
from universeg_jax.prediction import programs
from universeg_jax.prediction.programs import Program


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "WORTH_KEEPING", 0.0)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    jax.config.update("jax_compilation_cache_dir", before)


class Counting:
    """A function of a dictionary and an array or None that counts how often it is traced."""

    def __init__(self):
        self.times = 0

    def __call__(self, params, x, more=None):
        self.times += 1
        return params["w"] * jnp.sin(x) + (0 if more is None else more)


INPUTS = {"w": np.float32(3)}, np.arange(4, dtype=np.float32)


def kept(folder):
    return sorted(folder.glob("*.stablehlo"))


def test_another_process_finds_the_traced_program(folder):
    first, second = Counting(), Counting()
    program = Program(first, "f")
    expected = program(*INPUTS)
    np.testing.assert_allclose(expected, 3 * np.sin(np.arange(4)), rtol=1e-6)
    other = Program(second, "f")
    np.testing.assert_array_equal(other(*INPUTS), expected)
    assert (first.times, second.times) == (1, 0)


def test_what_differs_is_another_program(folder, monkeypatch):
    Program(Counting(), "f")(*INPUTS)
    doubled = Program(lambda params, x, more=None: 2 * params["w"] * x, "g")
    np.testing.assert_allclose(doubled(*INPUTS), 6 * np.arange(4), rtol=1e-6)
    for inputs in ((INPUTS[0], np.zeros(5, np.float32)), (*INPUTS, np.float32(1)), (INPUTS[0], np.zeros(4, np.int32))):
        counting = Counting()
        Program(counting, "f")(*inputs)
        assert counting.times == 1
    assert len(kept(folder)) == 5
    monkeypatch.setattr(programs, "_sources", lambda: "another version of this package")
    counting = Counting()
    Program(counting, "f")(*INPUTS)
    assert counting.times == 1


def test_a_damaged_file_is_written_again(folder):
    expected = Program(Counting(), "f")(*INPUTS)
    (file,) = kept(folder)
    whole = file.read_bytes()
    for damaged in (whole[:-1], b"", whole[:40] + bytes([whole[40] ^ 1]) + whole[41:]):
        file.write_bytes(damaged)
        np.testing.assert_array_equal(Program(Counting(), "f")(*INPUTS), expected)
        assert file.read_bytes()[:32] != damaged[:32] or file.read_bytes() == whole


def test_a_folder_that_cannot_be_written_is_warned_of(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "WORTH_KEEPING", 0.0)
    (tmp_path / "file").write_text("")
    program = Program(Counting(), "f")
    monkeypatch.setattr(program, "_file", lambda shapes: tmp_path / "file" / "program")
    with pytest.warns(UserWarning, match="programs start more slowly"):
        found = program(*INPUTS)
    np.testing.assert_allclose(found, 3 * np.sin(np.arange(4)), rtol=1e-6)


def test_what_cannot_be_read_is_traced_anew_with_a_warning(folder):
    expected = Program(Counting(), "f")(*INPUTS)
    (file,) = kept(folder)
    file.unlink()
    file.mkdir()
    with pytest.warns(UserWarning, match="programs start more slowly"):
        found = Program(Counting(), "f")(*INPUTS)
    np.testing.assert_array_equal(found, expected)


def test_precision_makes_another_program(folder):
    program = Program(lambda params, x: params["w"] * x + jnp.arange(4.0), "f")
    assert program(*INPUTS).dtype == jnp.float32
    with jax.enable_x64(True):
        assert program(*INPUTS).dtype == jnp.float64
    assert program(*INPUTS).dtype == jnp.float32


def test_nothing_is_kept_where_jax_keeps_nothing(folder):
    jax.config.update("jax_compilation_cache_dir", None)
    Program(Counting(), "f")(*INPUTS)
    assert not folder.exists()


def test_transformations_of_jax_pass_through(folder):
    program = Program(Counting(), "f")
    gradient = jax.grad(lambda x: jnp.cumsum(program(INPUTS[0], x))[-1])(jnp.zeros(4))
    np.testing.assert_allclose(gradient, 3 * np.ones(4), rtol=1e-6)
    rows = jax.vmap(lambda x: program(INPUTS[0], x))(jnp.zeros((2, 4)))
    assert rows.shape == (2, 4)


def test_the_packaged_backbone_gives_one_program_in_every_process():
    from universeg_jax.model import pretrained

    assert list(pretrained.weights()) == sorted(pretrained.weights())


NETWORKS = (
    {"name": "universeg", "matching": 2},
    {"name": "senet"},
    {"name": "panet", "stride": 2},
    {"name": "alpnet", "stride": 4},
)


def test_networks_are_those_of_the_factory():
    assert [fields["name"] for fields in NETWORKS] == list(MODELS)


@pytest.mark.parametrize("fields", NETWORKS, ids=lambda fields: fields["name"])
def test_a_kept_program_predicts_as_a_traced_one(folder, fields):
    config = tiny_config(image_size=32)
    config.model.update(fields)
    params = random_params(param_shapes(build_model(config.model)))
    rng = np.random.default_rng(0)
    images = rng.random((4, 20, 30)).astype(np.float32)
    arguments = images[0], images[1:], images[1:] > 0.5
    fresh = Predictor(params, config).segment(*arguments).probabilities
    assert kept(folder)
    again = Predictor(params, config).segment(*arguments).probabilities
    np.testing.assert_array_equal(again, fresh)
    jax.config.update("jax_compilation_cache_dir", None)
    np.testing.assert_allclose(Predictor(params, config).segment(*arguments).probabilities, fresh, atol=1e-6)
