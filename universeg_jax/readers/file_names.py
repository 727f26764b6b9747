"""File names: which extensions are read and as what, and the natural order of names.

This is the one list of formats. Add an extension here and its reader to `images.py` or `volume_files.py`.
"""

import re
from collections.abc import Iterable
from pathlib import Path

TIFF_EXTENSIONS = (".tif", ".tiff", ".ome.tif", ".ome.tiff", ".btf")  # one page is an image, several are a volume
PPM_EXTENSIONS = (".ppm", ".pgm", ".pbm", ".pnm", ".ppm.gz")
JPEG2000_EXTENSIONS = (".jp2", ".j2k")
IMAGE_EXTENSIONS = (
    ".png", ".jpg", ".jpeg", *TIFF_EXTENSIONS, ".bmp", ".gif", *PPM_EXTENSIONS, ".webp", *JPEG2000_EXTENSIONS
)  # fmt: skip
NIFTI_EXTENSIONS = (".nii", ".nii.gz")
MGH_EXTENSIONS = (".mgz", ".mgh")  # FreeSurfer
NIBABEL_EXTENSIONS = (*NIFTI_EXTENSIONS, *MGH_EXTENSIONS, ".hdr")  # .hdr has an .img beside it: Analyze or NIfTI
ITK_EXTENSIONS = (".nrrd", ".nhdr", ".mha", ".mhd")
VOLUME_EXTENSIONS = (*NIBABEL_EXTENSIONS, *ITK_EXTENSIONS)  # always volumes
DICOM_EXTENSIONS = (".dcm", ".ima", ".dicom")  # one file is an image, a folder of them is a volume
READABLE_EXTENSIONS = (*IMAGE_EXTENSIONS, *VOLUME_EXTENSIONS, *DICOM_EXTENSIONS)
DOUBLE_EXTENSIONS = (".nii.gz", ".ppm.gz", ".ome.tif", ".ome.tiff")
CONTOUR_EXTENSION = ".txt"  # labels only: the points of a closed line


def natural_order(names: Iterable[str]) -> list[str]:
    """Sorts numbers in names by their value: p2 before p10."""
    return sorted(names, key=lambda name: ([(text, int(n or -1)) for text, n in re.findall(r"(\D*)(\d*)", name)], name))


def extension(path: str | Path) -> str:
    """A file's extension in lower case; ".nii.gz" and the like are one extension."""
    name = Path(path).name.lower()
    return next((end for end in DOUBLE_EXTENSIONS if name.endswith(end)), Path(name).suffix)


def stem(path: str | Path) -> str:
    """A file's name without its extension; of Slicer's a.seg.nrrd it is "a", as of the image."""
    name = Path(path).name
    end = ".seg.nrrd" if name.lower().endswith(".seg.nrrd") else extension(name)
    return name[: len(name) - len(end)]
