"""Checks that an installation makes masks: python tools/smoke.py FOLDER [COMMAND …]

Draws discs into FOLDER, with names beyond ASCII, and runs `COMMAND predict` on images and `COMMAND complete` on a
volume (COMMAND: universeg). Exits with code 0 if the masks have their queries' sizes and mark the discs. Needs only
what the plain installation has.
"""

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

SIDE, SLICES = 96, 5


def disc(row: int, column: int, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """(image uint8, label uint8), both [SIDE, SIDE]."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    label = (rows - row) ** 2 + (columns - column) ** 2 < radius**2
    noise = np.random.default_rng(row).normal(0, 8, label.shape)
    return (60 + 120 * label + noise).clip(0, 255).astype(np.uint8), label.astype(np.uint8)


def dice(mask: np.ndarray, label: np.ndarray) -> float:
    return 2 * int((mask.astype(bool) & label.astype(bool)).sum()) / int((mask > 0).sum() + (label > 0).sum())


def check(name: str, mask: np.ndarray, label: np.ndarray) -> None:
    assert mask.shape == label.shape, f"{name}: {mask.shape}, not {label.shape}"
    score = dice(mask, label)
    print(f"{name}: Dice {100 * score:.1f}")
    assert score > 0.8, name


def main(folder: Path, command: list[str]) -> None:
    for part in ("scans/images", "scans/labels", "new"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for i in range(4):
        image, label = disc(35 + 6 * i, 50 - 3 * i, 15 + 2 * i)
        Image.fromarray(image).save(folder / "scans" / "images" / f"Zoë{i}_→.png")
        Image.fromarray(label).save(folder / "scans" / "labels" / f"Zoë{i}_→.png")
    image, truth = disc(45, 45, 20)
    Image.fromarray(image).save(folder / "new" / "Łukasz.png")
    slices = [disc(45, 40 + 2 * z, 20) for z in range(SLICES)]
    volume, labels = (np.stack(part, -1) for part in zip(*slices, strict=True))
    some = np.where(np.arange(SLICES) % 4 == 0, labels, 0)  # the first and the last slice
    for name, values in (("scan", volume), ("some", some)):
        nib.save(nib.Nifti1Image(values, np.diag([1.0, 1, 3, 1])), folder / f"{name}.nii.gz")

    def run(*words: str) -> None:
        subprocess.run([*command, *words], cwd=folder, check=True)

    run("predict", "--support", "scans", "--queries", "new", "--out", "masks", "--overlay", "--overwrite")
    run("complete", "scan.nii.gz", "some.nii.gz", "--out", "full.nii.gz", "--overwrite")
    check("predict", np.asarray(Image.open(folder / "masks" / "Łukasz.png")), truth)
    check("complete", np.asarray(nib.Nifti1Image.from_filename(folder / "full.nii.gz").dataobj), labels)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:] or ["universeg"])
