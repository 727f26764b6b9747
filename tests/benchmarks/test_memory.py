"""Tests that the compiler counts the memory of a mask."""

import pytest

from benchmarks import memory
from universeg_jax.configs import default


@pytest.fixture
def tiny(monkeypatch):
    config = default.get_config()
    config.image_size = 16
    config.model.encoder_blocks = (4, 4)
    monkeypatch.setattr(memory.store, "resolve", lambda name: name)
    monkeypatch.setattr(memory.store, "load", lambda path: (None, config))


def test_what_a_mask_needs_grows_with_its_support(tiny):
    small, large = (memory.bytes_of_a_mask("tiny", support) for support in (64, 128))
    entries = 2 * 4 * 16 * 16  # bytes of an image and its label in float32
    assert large - small >= 64 * entries
    assert large - small < 64 * 10 * entries  # features of one entry at a time, and what is kept of each
