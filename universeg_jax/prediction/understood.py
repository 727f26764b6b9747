"""Describes how a support set was understood and finds labels that probably mean something else. Needs no model."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from universeg_jax.prediction.support import Support, case_names
from universeg_jax.readers.label_fit import fits_of, shared_mistake
from universeg_jax.readers.label_values import MANY_IDS


def describe(support: Support, names: Mapping[int, str], path: str | Path, taken: str = "") -> list[str]:
    """One line per aspect: images, what labels were `taken` for, ids with names and pixels, size, window, subjects."""
    volumes = support.positions is not None
    count, kind = len(set(case_names(support))), "volumes" if volumes else "images"
    sizes = Counter("x".join(map(str, size if volumes else size[::-1])) for size in support.sizes)
    most = ", ".join(size for size, _ in sizes.most_common(3)) + (
        f" and {len(sizes) - 3} more" if len(sizes) > 3 else ""
    )
    lines = [
        f"{path}: {count} {kind} with a label each" + (f", {len(support)} slices of them" if volumes else ""),
        f"size: {most} " + ("voxels" if volumes else "pixels (width x height)"),
    ]
    if taken:
        lines.append(f"labels: taken for {taken}")
    if support.ignored is not None:
        count = int(support.ignored.any((1, 2)).sum())
        lines.append(
            f"without a label: {100 * support.ignored.mean():.1f} % of all pixels, in {count} of {len(support)}"
        )
    if support.overlapping:
        lines.append("classes overlap, so each is predicted by itself, with a mask of its own")
    unit, share = ("voxels", "slices") if volumes else ("pixels", "images")
    for i, pixels, masks in zip(support.labels, support.pixels, support.masks, strict=True):
        occurs = f"in {int(masks.any((1, 2)).sum())} of {len(support)} {share}"
        lines.append(f"id {i} ({names.get(i, 'no name')}): {pixels:,} {unit}, {occurs}")
    if volumes:
        window = "chosen by the intensities of each" if support.window == "auto" else support.window
        lines.append(f"window: {window if isinstance(window, str) else tuple(window)}")
    subjects = sorted(set(support.subjects))
    shown = ", ".join(subjects[:5]) + (f" and {len(subjects) - 5} more" if len(subjects) > 5 else "")
    return [*lines, f"subjects: {len(subjects)}: {shown}"]


def find_shared_mistakes(support: Support, named: bool = True) -> list[tuple[str, str]]:
    """(kind, message) for what is wrong with the labels of the whole set."""
    found = []
    if not named and len(support.labels) >= MANY_IDS:
        message = f'{len(support.labels)} ids without names: if they number objects, write "instances": true'
        found.append(("instances", f"{message} into meta.json, and they become one class"))
    shapes = support.sizes if support.positions is None and support.sizes else ((),) * len(support)
    voids = [None] * len(support) if support.ignored is None else support.ignored
    by_image = [
        fits_of(image, masks, shape, ignored)
        for image, masks, shape, ignored in zip(
            support.images, support.masks.swapaxes(0, 1), shapes, voids, strict=True
        )
    ]
    for j, i in enumerate(support.labels):
        prefix = f"label {i}: " if len(support.labels) > 1 else ""
        if mistake := shared_mistake([(name, fits[j]) for name, fits in zip(support.names, by_image, strict=True)]):
            found.append((mistake[0], prefix + mistake[1]))
    return found
