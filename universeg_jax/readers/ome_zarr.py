"""OME-Zarr volumes, versions 0.4 and 0.5, by zarr (extra [zarr]): the finest level of the first image.

Axes and voxel sizes are those of its metadata; lengths become millimetres.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from universeg_jax.readers import checks
from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.volumes import LPS_TO_RAS, Volume, make_affine, make_volume

MILLIMETRES = {
    "millimeter": 1.0,
    "micrometer": 1e-3,
    "nanometer": 1e-6,
    "angstrom": 1e-7,
    "centimeter": 10.0,
    "meter": 1e3,
}


def is_ome_zarr(path: str | Path) -> bool:
    """True for a folder with the metadata of a Zarr group."""
    path = Path(path)
    return path.is_dir() and any((path / name).is_file() for name in (".zgroup", "zarr.json"))


def zarr_stem(name: str) -> str:
    """The name of a volume without .zarr or .ome.zarr."""
    return re.sub(r"(\.ome)?\.zarr$", "", name, flags=re.IGNORECASE)


def read_ome_zarr(path: Path, channel: int | None = None) -> Volume:
    """Reads [X, Y, Z]; `channel` selects one of several channels or times. Raises ImageError.

    A group with labels but no image of its own is refused: give <name>.zarr/labels/<label>.
    """
    try:
        import zarr
    except ImportError as error:
        raise ImageError(path, "OME-Zarr needs another package", "pip install 'universeg_jax[zarr]'") from error
    group = zarr.open_group(path, mode="r")
    attributes = dict(group.attrs)
    scales = attributes.get("ome", attributes).get("multiscales")
    if not scales:
        inner = ", ".join(sorted(group.group_keys())[:5]) or "none"
        raise ImageError(path, "is no OME-Zarr image", f"it has no multiscales; groups inside: {inner}")
    levels = {str(level["path"]): level for level in scales[0]["datasets"]}
    path_of_level = max(levels, key=lambda name: np.prod(group[name].shape, dtype=float))  # the first of equals
    level, array = levels[path_of_level], group[path_of_level]
    axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in scales[0].get("axes", [])]
    names = [str(axis["name"]).lower() for axis in axes] or list("tczyx")[-array.ndim :]
    if len(names) != array.ndim or not {"y", "x"} <= set(names) or set(names) - set("tczyx"):
        raise ImageError(path, "its axes are not among t, c, z, y and x", f"{names} for {array.shape}")
    checks.check_voxels(path, array.shape)
    data = array[_selection(path, names, array.shape, channel)]
    kept = [name for name in names if name in "zyx"]
    data = np.asarray(data).transpose([kept.index(name) for name in "xyz" if name in kept])
    spacing = _spacing(level, scales[0], names, axes)
    matrix = np.diag([spacing.get(name, 1.0) for name in "xyz"])
    data = data if data.dtype.kind in "iu" else data.astype(np.float32)
    return make_volume(data.reshape((*data.shape, 1)[:3]), LPS_TO_RAS @ make_affine(matrix, np.zeros(3)), str(path))


def _selection(path: Path, names: list[str], shape: tuple[int, ...], channel: int | None) -> tuple[Any, ...]:
    """The index of the array: all of z, y, x, and one of the others."""
    others = [(name, n) for name, n in zip(names, shape, strict=True) if name in "tc" and n > 1]
    if others and (channel is None or len(others) > 1 or not 0 <= channel < others[0][1]):
        counts = " and ".join(f"{n} along {name}" for name, n in others)
        raise ImageError(path, "has several channels or times", f"{counts}; save one of them as a volume of its own")
    wanted = {others[0][0]: channel} if others else {}
    return tuple(slice(None) if name in "zyx" else wanted.get(name, 0) for name in names)


def _spacing(level: Any, scale: Any, names: list[str], axes: list[Any]) -> dict[str, float]:
    """Axis → millimetres between voxels; 1 where the file says none."""
    sizes = np.ones(len(names))
    for step in (*level.get("coordinateTransformations", ()), *scale.get("coordinateTransformations", ())):
        if step.get("type") == "scale" and "scale" in step:
            sizes *= np.array(step["scale"], float)
    units = [MILLIMETRES.get(str(axis.get("unit", "")).lower(), 1.0) for axis in axes] or [1.0] * len(names)
    return {name: float(size * unit) for name, size, unit in zip(names, sizes, units, strict=True) if size > 0}
