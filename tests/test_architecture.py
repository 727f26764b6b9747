"""Rooms of the package import in one direction, and the picture of them is up to date."""

import graphlib

import pytest

from tools import rooms


def test_imports_point_down():
    levels, graph = rooms.floors(rooms.imports()), rooms.imports()
    assert levels["commands"] == max(levels.values()) - 1  # below cli alone
    assert all(levels[room] > levels[below] for room, imported in graph.items() for below in imported)


def test_the_picture_shows_the_imports():
    assert rooms.PICTURE.read_text() == rooms.svg(rooms.imports()), "run python tools/rooms.py"


def test_a_circle_is_named():
    with pytest.raises(graphlib.CycleError, match="episodes"):
        rooms.floors({"data": {"episodes"}, "episodes": {"data"}})


def test_implied_arrows_are_left_out():
    graph = {"training": {"data", "errors"}, "data": {"errors"}, "errors": set()}
    assert rooms.reduced(graph) == {"training": {"data"}, "data": {"errors"}, "errors": set()}
    assert rooms.floors(graph) == {"errors": 0, "data": 1, "training": 2}
