"""Errors that a user can fix; commands print the message without a traceback."""

EXTRAS = {  # top-level modules that the plain installation lacks → the extra of setup.cfg that brings them
    **dict.fromkeys(("array_record", "grain", "importlib_resources", "matplotlib"), "train"),
    **dict.fromkeys(("optax", "tensorboardX", "tensorflow_datasets"), "train"),
    "apache_beam": "beam",
    **dict.fromkeys(("fastapi", "uvicorn"), "serve"),
    "gradio": "demo",
    **dict.fromkeys(("highdicom", "pydicom"), "dicom"),
    "imagecodecs": "tiff",
    "napari": "napari",
    "submitit": "slurm",
    "torch": "convert",
    "zarr": "zarr",
}


class UserError(ValueError):
    """A wrong file, folder, option or config; the message names it, its value and the remedy."""


def install_line(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'universeg_jax[{extra}]'"


def missing_extra(error: ModuleNotFoundError) -> UserError:
    """What a user is told where a package is missing. Raises `error` itself where no extra brings it."""
    name = (error.name or "").partition(".")[0]
    if name not in EXTRAS:
        raise error
    return UserError(f"this needs {name}, which is not installed: {install_line(EXTRAS[name])}")
