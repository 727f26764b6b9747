"""Draws docs/rooms.svg: the packages of universeg_jax on floors, so that every import points down.

python tools/rooms.py

A room is a package or a module of universeg_jax. Its floor is the length of the longest chain of imports below it. An
arrow that other arrows imply is left out.
"""

import ast
import graphlib
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "universeg_jax"
PICTURE = ROOT / "docs" / "rooms.svg"
BOX, GAP, FLOOR = (112, 30), 18, 74  # width and height, between boxes, between floors; pixels
Graph = dict[str, set[str]]  # room → rooms it imports


def imports() -> Graph:
    graph: Graph = defaultdict(set)
    files = {file: file.relative_to(PACKAGE).with_suffix("").parts[0] for file in PACKAGE.rglob("*.py")}
    for file, room in sorted(files.items()):
        if room == "__init__":
            continue
        graph[room].update(*(_rooms(node) for node in ast.walk(ast.parse(file.read_text()))))
        graph[room].discard(room)
    return dict(graph)


def _rooms(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "import_module":
        return set(re.findall(r"universeg_jax\.(\w+)\.", ast.unparse(node.args[0])))
    if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("universeg_jax"):
        return set()
    inner = str(node.module).split(".")[1:]
    return {inner[0]} if inner else {name.name for name in node.names if not name.name.startswith("_")}


def floors(graph: Graph) -> dict[str, int]:
    """Raises graphlib.CycleError, which names the rooms, if they import each other in a circle."""
    result: dict[str, int] = {}
    for room in graphlib.TopologicalSorter(graph).static_order():
        result[room] = 1 + max((result[below] for below in graph.get(room, ())), default=-1)
    return result


def reduced(graph: Graph) -> Graph:
    """The arrows that no chain of other arrows implies."""
    order = graphlib.TopologicalSorter(graph).static_order()
    below: Graph = {}
    for room in order:
        direct = graph.get(room, set())
        below[room] = direct.union(*(below[other] for other in direct))
    return {room: {b for b in direct if not any(b in below[o] for o in direct)} for room, direct in graph.items()}


def places(graph: Graph) -> dict[str, tuple[float, float]]:
    """Centres of the boxes: floors from the bottom up, and in a floor each room near those that import it."""
    levels, arrows = floors(graph), reduced(graph)
    rows = [sorted(room for room in levels if levels[room] == floor) for floor in range(max(levels.values()) + 1)]
    width = max(len(row) for row in rows) * (BOX[0] + GAP) + GAP
    place: dict[str, tuple[float, float]] = {}
    for floor, row in reversed(list(enumerate(rows))):
        above = {room: [place[a][0] for a in arrows if room in arrows[a]] or [width / 2] for room in row}
        row.sort(key=lambda room: (sum(above[room]) / len(above[room]), room))
        y = (len(rows) - floor) * FLOOR - FLOOR / 2
        place |= {room: ((i + 0.5) * width / len(row), y) for i, room in enumerate(row)}
    return place


def svg(graph: Graph) -> str:
    arrows, place = reduced(graph), places(graph)
    width, height = (int(max(p[axis] for p in place.values()) + margin) for axis, margin in ((0, 80), (1, FLOOR / 2)))
    lines = [
        f'<line x1="{place[a][0]:.0f}" y1="{place[a][1] + BOX[1] / 2:.0f}" x2="{place[b][0]:.0f}" '
        f'y2="{place[b][1] - BOX[1] / 2 - 3:.0f}" stroke="#8a96a3" marker-end="url(#tip)"/>'
        for a in sorted(arrows)
        for b in sorted(arrows[a])
    ]
    boxes = [
        f'<rect x="{x - BOX[0] / 2:.0f}" y="{y - BOX[1] / 2:.0f}" width="{BOX[0]}" height="{BOX[1]}" rx="5" '
        f'fill="#e8eef5" stroke="#39536e"/><text x="{x:.0f}" y="{y + 5:.0f}">{room}</text>'
        for room, (x, y) in sorted(place.items())
    ]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="14" text-anchor="middle">'
    )
    tip = '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    tip = f'<defs>{tip}<path d="M0 0L8 4L0 8z" fill="#8a96a3"/></marker></defs>'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', tip, *lines, *boxes, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(svg(imports()))
    print(f"{PICTURE.relative_to(ROOT)}: {len(imports())} rooms on {max(floors(imports()).values()) + 1} floors")
