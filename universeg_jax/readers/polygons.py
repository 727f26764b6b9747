"""Labels as polygons in JSON: COCO (one file for all images), LabelMe and QuPath GeoJSON (one file for each).

A file is read once into `Shapes`; `draw` rasterises the shapes of one class. Polygons are filled even-odd, so that a
ring inside a ring is a hole; pixels whose centre lies inside belong to the class.
"""

import base64
import functools
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from universeg_jax.readers import checks
from universeg_jax.readers.checks import MAX_BYTES, MAX_PIXELS, MAX_SIDE
from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.meta import decode_text

JSON_EXTENSIONS = (".json", ".geojson")
Ring = np.ndarray  # float64 [N, 2]: x and y in pixels; (0, 0) is the outer corner of the first pixel
UNCLASSIFIED = "unclassified"


@dataclass(frozen=True)
class Shape:
    """One object: rings with holes by the even-odd rule, or a mask in run lengths."""

    name: str  # of its class
    rings: tuple[Ring, ...] = ()
    runs: tuple[int, ...] = ()  # COCO: lengths of runs of 0 and 1 in turn, column by column
    size: tuple[int, int] = (0, 0)  # height and width of the runs


@dataclass(frozen=True)
class Shapes:
    """The shapes of one image."""

    image: str  # its file name as the file states it; "" where it states none
    size: tuple[int, int] | None  # height and width as stated
    shapes: tuple[Shape, ...]


@dataclass(frozen=True)
class PolygonFile:
    """A file of shapes: its kind, the names of its classes (id → name where it numbers them), and its images."""

    kind: str  # "COCO" | "LabelMe" | "QuPath GeoJSON"
    names: tuple[str, ...]
    ids: tuple[int, ...]  # of `names`; () where the file does not number classes
    images: tuple[Shapes, ...]


def read_polygons(path: str | Path) -> PolygonFile | None:
    """Reads a JSON file of shapes; None where it is another JSON. Raises ImageError where it is damaged."""
    path = Path(path)
    return _read(str(path), path.stat().st_mtime_ns)


@functools.lru_cache(64)
def _read(path: str, modified: int) -> PolygonFile | None:
    file = Path(path)
    if file.stat().st_size > MAX_BYTES:
        raise ImageError(path, "the file is too large", f"at most {MAX_BYTES:,} bytes are read")
    try:
        contents = json.loads(decode_text(file.read_bytes()))
    except (ValueError, RecursionError) as error:
        raise ImageError(path, "is not JSON", str(error)[:120]) from error
    try:
        if isinstance(contents, dict) and {"images", "annotations"} <= contents.keys():
            return _coco(path, contents)
        if isinstance(contents, dict) and "shapes" in contents:
            return _labelme(path, contents)
        is_collection = isinstance(contents, dict) and contents.get("type") in ("FeatureCollection", "Feature")
        features = contents.get("features", [contents]) if is_collection else contents
        if is_collection or (isinstance(contents, list) and contents and _is_feature(contents[0])):
            return _qupath(path, features)
    except ImageError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ImageError(path, "its shapes cannot be read", f"{type(error).__name__} {error}") from error
    return None


def _is_feature(value: Any) -> bool:
    return isinstance(value, dict) and value.get("type") == "Feature"


def _ring(path: str, points: Any) -> Ring:
    ring = np.array(points, float).reshape(-1, 2)
    if len(ring) < 3 or not np.isfinite(ring).all() or np.abs(ring).max() > MAX_SIDE:
        raise ImageError(path, "a polygon has fewer than three points, or points far outside", f"{ring[:3].tolist()}")
    return ring


def _coco(path: str, contents: dict[str, Any]) -> PolygonFile:
    names = {int(category["id"]): str(category["name"]) for category in contents.get("categories", [])}
    shapes: dict[Any, list[Shape]] = {image["id"]: [] for image in contents["images"]}
    for annotation in contents["annotations"]:
        if annotation["image_id"] not in shapes:
            raise ImageError(
                path, "an annotation belongs to no image of the file", f"image_id {annotation['image_id']}"
            )
        category = int(annotation["category_id"])
        name = names.setdefault(category, f"category {category}")
        parts = annotation.get("segmentation")
        if isinstance(parts, dict):
            runs = parts["counts"]
            size = (int(parts["size"][0]), int(parts["size"][1]))
            runs = _decode_runs(runs) if isinstance(runs, str) else tuple(map(int, runs))
            if size[0] * size[1] > MAX_PIXELS or min(runs, default=0) < 0 or sum(runs) != size[0] * size[1]:
                raise ImageError(path, "a mask in run lengths does not fill its image", f"{sum(runs)} of {size}")
            shapes[annotation["image_id"]].append(Shape(name, runs=runs, size=size))
        elif parts:
            # Each part is a piece of the object of its own, never a hole.
            shapes[annotation["image_id"]] += [Shape(name, (_ring(path, part),)) for part in parts]
        else:
            raise ImageError(path, "an annotation is a box without a polygon", f"annotation {annotation.get('id')}")
    images = tuple(
        Shapes(str(image["file_name"]), _size(image.get("height"), image.get("width")), tuple(shapes[image["id"]]))
        for image in contents["images"]
    )
    ids = tuple(names) if all(names) else tuple(i + 1 for i in names)  # category 0 is a class, not the background
    return PolygonFile("COCO", tuple(names.values()), ids, images)


def _decode_runs(text: str) -> tuple[int, ...]:
    """COCO's compressed run lengths: 5 bits a character, each number relative to the one two before it."""
    runs: list[int] = []
    value = shift = 0
    for character in text.encode():
        bits = character - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return tuple(runs)


def _labelme(path: str, contents: dict[str, Any]) -> PolygonFile:
    shapes = []
    size = _size(contents.get("imageHeight"), contents.get("imageWidth"))
    for shape in contents["shapes"]:
        kind, points = shape.get("shape_type") or "polygon", np.array(shape["points"], float).reshape(-1, 2)
        if kind == "rectangle":
            (left, top), (right, bottom) = points.min(0), points.max(0)
            points = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
        elif kind == "circle":
            angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
            radius = np.linalg.norm(points[1] - points[0])
            points = points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
        elif kind == "mask":
            shapes.append(_labelme_mask(path, shape, size))
            continue
        elif kind != "polygon":
            raise ImageError(path, "a shape is no area", f"{kind} of {shape['label']!r}; draw polygons")
        shapes.append(Shape(str(shape["label"]), (_ring(path, points),)))
    image = str(contents.get("imagePath") or "").replace("\\", "/").rpartition("/")[2]
    names = tuple(sorted({shape.name for shape in shapes}))
    return PolygonFile("LabelMe", names, (), (Shapes(image, size, tuple(shapes)),))


def _labelme_mask(path: str, shape: dict[str, Any], size: tuple[int, int] | None) -> Shape:
    """A shape that LabelMe keeps as a PNG with the place of its upper left corner."""
    if size is None or size[0] * size[1] > MAX_PIXELS:
        raise ImageError(path, "a mask needs imageHeight and imageWidth", f"they are {size}")
    with Image.open(io.BytesIO(base64.b64decode(shape["mask"])), formats=("PNG",)) as image:
        checks.check_pixels(path, *image.size)
        mask = np.asarray(image.convert("L")) > 0
    left, top = (round(float(value)) for value in shape["points"][0])
    if left < 0 or top < 0 or top + mask.shape[0] > size[0] or left + mask.shape[1] > size[1]:
        raise ImageError(path, "a mask lies outside its image", f"{mask.shape} at {top}, {left} of {size}")
    whole = np.zeros(size, bool)
    whole[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    values = whole.ravel(order="F")
    ends = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return Shape(str(shape["label"]), runs=(*((0,) if values[0] else ()), *np.diff(ends).tolist()), size=size)


def _qupath(path: str, features: Sequence[dict[str, Any]]) -> PolygonFile:
    shapes = []
    for feature in features:
        about = feature.get("properties") or {}
        name = (about.get("classification") or {}).get("name") or UNCLASSIFIED
        geometry = feature["geometry"]
        if geometry["type"] not in ("Polygon", "MultiPolygon"):
            raise ImageError(path, "a shape is no area", f"{geometry['type']} of {name!r}; export areas alone")
        polygons = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
        shapes += [Shape(str(name), tuple(_ring(path, ring) for ring in polygon)) for polygon in polygons]
    names = tuple(sorted({shape.name for shape in shapes}))
    return PolygonFile("QuPath GeoJSON", names, (), (Shapes("", None, tuple(shapes)),))


def _size(height: Any, width: Any) -> tuple[int, int] | None:
    return (int(height), int(width)) if height and width else None


def draw(path: str | Path, image: str, name: str, shape: tuple[int, int]) -> np.ndarray:
    """Rasterises the shapes of one class on one image of a file: int32 0/1 of `shape`. Raises ImageError.

    `image`: its name in the file; "" for a file of one image.
    """
    file = read_polygons(path)
    drawn = next((each for each in file.images if image in ("", each.image)), None) if file else None
    if drawn is None:
        raise ImageError(path, "has no shapes of this image", image)
    if drawn.size and drawn.size != shape:
        sizes = [f"{size[1]}x{size[0]}" for size in (shape, drawn.size)]
        detail = f"the image is {sizes[0]}, {path} says {sizes[1]} (width x height)"
        raise ImageError(path, "image and label differ in size", detail)
    mask = np.zeros(shape, np.int32)
    for each in drawn.shapes:
        if each.name == name:
            _fill(path, mask, each)
    return mask


def _fill(path: str | Path, mask: np.ndarray, shape: Shape) -> None:
    if shape.runs:
        if shape.size != mask.shape:
            raise ImageError(path, "image and label differ in size", f"{mask.shape} and {shape.size} (height, width)")
        values = np.repeat(np.arange(len(shape.runs)) % 2, shape.runs)
        mask[values.reshape(shape.size, order="F") > 0] = 1
        return
    points = np.concatenate(shape.rings)
    low = np.clip(np.floor(points.min(0)).astype(int), 0, mask.shape[::-1])
    high = np.clip(np.ceil(points.max(0)).astype(int) + 1, 0, mask.shape[::-1])
    if (high <= low).any():
        return
    x, y = (np.arange(low[axis], high[axis]) + 0.5 for axis in (0, 1))
    inside = np.zeros((len(y), len(x)), bool)
    for ring in shape.rings:
        inside ^= _inside(ring, x, y)
    mask[low[1] : high[1], low[0] : high[0]][inside] = 1


def _inside(ring: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """True [len(y), len(x)] for points of a grid inside the closed line `ring` [N, 2] of (x, y), by even and odd.

    The crossings test of Haines (Graphics Gems IV, 1994, p. 24): points on the line count as matplotlib counts them.
    """
    inside = np.zeros((len(y), len(x)), bool)
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, 0), strict=True):
        above = y1 >= y
        crossed = np.flatnonzero((y0 >= y) != above)
        ahead = (y1 - y[crossed, None]) * (x0 - x1) >= (x1 - x) * (y0 - y1)
        inside[crossed] ^= ahead == above[crossed, None]
    return inside
