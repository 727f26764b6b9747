"""Layers of a viewer as images of a project, and units of a session as arrays for layers. No viewer is needed.

A layer has its own axes: [rows, columns] of an image, [slices, rows, columns] of a volume, in the order of its file.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from universeg_jax.annotation.session import Session
from universeg_jax.errors import UserError
from universeg_jax.prediction.corrections import UNSAID
from universeg_jax.readers.slices import from_planes, plane
from universeg_jax.readers.volumes import Volume


@dataclass(frozen=True)
class OpenLayer:
    """An image layer of a viewer. `scale` has the sizes of a pixel along the axes of `data`, mm for volumes."""

    name: str
    data: np.ndarray
    scale: tuple[float, ...]
    rgb: bool = False


def write_layers(layers: Sequence[OpenLayer], folder: Path) -> list[str]:
    """Writes layers as images or volumes of `folder`; returns their names there. Raises UserError."""
    if not layers:
        raise UserError("no image layer is open: open an image, then make the project")
    folder.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    for layer in layers:
        name = re.sub(r"[^\w.-]+", "_", layer.name).strip("._") or "image"
        while name in names:
            name += "_"
        names.append(name)
        _write_layer(layer, folder, name)
    return names


def _write_layer(layer: OpenLayer, folder: Path, name: str) -> None:
    data = np.asarray(layer.data)
    axes = data.ndim - (1 if layer.rgb else 0)
    if axes not in (2, 3) or (layer.rgb and axes == 3):
        raise UserError(
            f"layer {layer.name}: {'a colour' if layer.rgb else 'an'} image of {axes} axes; use images of 2 axes, or "
            "grey volumes of 3. Split other axes into layers first (right click: Split Stack)"
        )
    if layer.rgb:
        values = data if data.dtype == np.uint8 else np.round(255 * np.clip(data, 0, 1)).astype(np.uint8)
        Image.fromarray(values[..., :3]).save(folder / f"{name}.png")
    elif axes == 2:
        suffix, content = encode(data.astype(np.float32))
        (folder / f"{name}{suffix}").write_bytes(content)
    else:
        import nibabel as nib

        slices, rows, columns = layer.scale[-3:]
        affine = np.diag([-columns, -rows, slices, 1.0])  # as a viewer shows it: columns to the left, rows to the back
        values = data.astype(np.float32 if data.dtype.kind == "f" or data.itemsize > 2 else np.int32)
        nib.save(nib.Nifti1Image(values.transpose(2, 1, 0), affine), folder / f"{name}.nii.gz")


def encode(image: np.ndarray) -> tuple[str, bytes]:
    """(suffix, content) of a lossless file: PNG of 8 or 16 bits for whole numbers, else float32 TIFF."""
    whole = image.min() >= 0 and image.max() < 65536 and (image == np.floor(image)).all()
    suffix = ".png" if whole else ".tif"
    dtype = np.float32 if not whole else np.uint8 if image.max() < 256 else np.uint16
    buffer = io.BytesIO()
    Image.fromarray(image.astype(dtype)).save(buffer, format="PNG" if whole else "TIFF")
    return suffix, buffer.getvalue()


@dataclass(frozen=True)
class View:
    """What a viewer shows of an image or volume."""

    name: str
    image: np.ndarray  # float32
    labels: np.ndarray  # int32 ids; 0 where nothing is accepted
    accepted: frozenset[int]  # the slices of a volume with an accepted label; {0} for an accepted image
    scale: tuple[float, ...]


def view_of(session: Session, name: str) -> View:
    """The image or volume `name` with its accepted labels. Raises ImageError."""
    item, _ = session.project.find(name)
    units = item.units()
    accepted = frozenset(k for k, unit in enumerate(units) if session.is_labelled(unit))
    content = session.image(name)
    if not isinstance(content, Volume):
        mask = session.mask(name)
        labels = np.zeros(content.shape, np.int32) if mask is None else mask
        return View(name, content, labels, accepted, (1.0, 1.0))
    axis = int(item.axis or 0)
    image = np.stack([plane(content.data, axis, item.canonical(k)) for k in range(item.slices)])
    labels = np.zeros(image.shape, np.int32)
    for k, mask in session.slices(name).items():
        labels[k] = mask
    columns, rows = (content.spacing[a] for a in range(3) if a != axis)
    return View(name, image, labels, accepted, (content.spacing[axis], rows, columns))


def to_slices(session: Session, name: str, mask: np.ndarray) -> np.ndarray:
    """Ids of a volume in canonical axes, as `rest.predict_volume` gives them → [slices, rows, columns]."""
    item, _ = session.project.find(name)
    return np.stack([plane(mask, int(item.axis or 0), item.canonical(k)) for k in range(item.slices)])


def from_slices(session: Session, name: str, labels: np.ndarray) -> np.ndarray:
    """Inverts `to_slices`."""
    item, _ = session.project.find(name)
    canonical = np.stack([labels[item.canonical(i)] for i in range(item.slices)])
    return from_planes(canonical, int(item.axis or 0))


def corrections_of(shown: np.ndarray, now: np.ndarray, earlier: np.ndarray) -> np.ndarray:
    """The ids of pixels whose id a person changed since `shown` came onto the screen, or earlier; UNSAID elsewhere.

    Arrays [H, W] or [slices, H, W]. `earlier` is the result for the screen before, or UNSAID everywhere.
    """
    return np.where((now != shown) | (earlier != UNSAID), now, UNSAID).astype(np.int32)
