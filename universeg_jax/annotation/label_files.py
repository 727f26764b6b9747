"""Label files that belong to an image or volume of a project, or of a viewer."""

from pathlib import Path

import numpy as np

from universeg_jax.errors import UserError
from universeg_jax.readers.file_names import IMAGE_EXTENSIONS, extension
from universeg_jax.readers.images import read_label
from universeg_jax.readers.segments import on_grid_of
from universeg_jax.readers.slices import plane
from universeg_jax.readers.volume_files import is_volume, read_label_volume
from universeg_jax.readers.volumes import Volume, check_same_grid


def read_label_for(content: np.ndarray | Volume, file: Path, name: str) -> np.ndarray:
    """Reads the ids, int [H, W] or [X, Y, Z], that belong to an image or volume called `name`.

    A volume's label lies on its grid; an image's may be a volume of one slice. Raises UserError.
    """
    if isinstance(content, Volume):
        volume = on_grid_of(read_label_volume(file), content)
        check_same_grid(content, volume)
        return volume.data
    if extension(file) in IMAGE_EXTENSIONS and not is_volume(file):
        return read_label(file)
    whole = read_label_volume(file).data
    if whole.shape[2] != 1:
        raise UserError(f"{name} is an image, and its label has {whole.shape[2]} slices")
    return plane(whole, 2, 0)
