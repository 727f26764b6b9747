"""Pairs of images and labels whose names differ: a label has the name of its image and more, or a word instead.

    images/p1.png         labels/p1_mask.png                          one word for all labels
    images/p1.png         labels/p1_liver.png, labels/p1_tumour.png   one word for each class
    images/image_01.png   labels/mask_01.png                          words that mean image or label

Names decide only where no image has a label of its own name. A label must hold the whole name of its image, or all of
it but such a word, so that no two cases are confused.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

SEPARATORS = r"[_\-. ]+"
IMAGE_WORDS = {"image", "images", "img", "im", "photo", "scan", "slice", "orig", "original"}
LABEL_WORDS = {
    "annotation", "annotated", "gt", "groundtruth", "label", "labels", "manual", "mask", "masks", "roi", "seg",
    "segmentation", "target", "truth",
}  # fmt: skip
Pairs = dict[str, dict[str, Path]]  # case → word of its label → file


def pair_names(images: Mapping[str, list[Path]], labels: Mapping[str, list[Path]]) -> tuple[dict[str, str], Pairs]:
    """(image name → case name, case name → {word: label file}); ({}, {}) where names do not pair without doubt."""
    ending = "_0000" if all(name.endswith("_0000") for name in images) else ""  # nnU-Net's first channel
    cores = _by_core(images, IMAGE_WORDS, ending), _by_core(labels, LABEL_WORDS)
    if cores[0] and cores[1] and cores[0].keys() == cores[1].keys():
        names = {image: core for core, image in cores[0].items()}
        return names, {core: {"": labels[label][0]} for core, label in cores[1].items()}
    pairs: Pairs = {}
    for label, files in labels.items():
        owners = [image for image in images if re.match(re.escape(image) + SEPARATORS + r"[^_\-. ]", label)]
        if not owners or len(files) > 1:
            return {}, {}
        owner = max(owners, key=len)
        pairs.setdefault(owner, {})[re.sub("^" + SEPARATORS, "", label[len(owner) :])] = files[0]
    return {image: image for image in images}, pairs


def _by_core(names: Iterable[str], words: set[str], ending: str = "") -> dict[str, str]:
    """Name without `words` and `ending` → name; {} where two names become one, or nothing is left of one."""
    found: dict[str, str] = {}
    for name in names:
        parts = [part for part in re.split(f"({SEPARATORS})", name.removesuffix(ending)) if part]
        kept = [part for part in parts if part.casefold() not in words]
        core = re.sub(f"^{SEPARATORS}|{SEPARATORS}$", "", "".join(kept))
        if not core or core in found:
            return {}
        found[core] = name
    return found
