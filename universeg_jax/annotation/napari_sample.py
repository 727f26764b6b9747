"""Sample data for napari: synthetic images of one structure, for a first try of the annotation widget."""

from typing import Any

SUBJECTS, SIZE, SEED = 6, 192, 5


def make_sample() -> list[tuple[Any, dict[str, Any], str]]:
    """Image layers of the subjects of one synthetic task, uint8 [192, 192], as napari takes them."""
    import jax

    from universeg_jax.episodes.synthetic_datasets import sample_subjects

    images, _ = sample_subjects(jax.random.key(SEED, impl="threefry2x32"), SIZE, SUBJECTS)
    return [(image, {"name": f"subject{i}", "visible": i == 0}, "image") for i, image in enumerate(images)]
