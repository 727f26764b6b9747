"""What the network sees of the images and slices of a session, computed once, and the way back to their own pixels."""

import functools
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from universeg_jax.annotation.session import Session
from universeg_jax.annotation.store import stamp
from universeg_jax.episode import OFFICIAL_SIZE
from universeg_jax.prediction.corrections import UNSAID, Strokes, see_corrections
from universeg_jax.prediction.examples import mask_at
from universeg_jax.readers.preprocess import Window, preprocess_ignored, preprocess_image, restore
from universeg_jax.readers.slices import (
    SliceOrigin,
    from_planes,
    from_slices,
    ignored_slices,
    mask_slices,
    plane,
    stroke_slices,
    volume_slices,
)
from universeg_jax.readers.volumes import Volume

VOLUMES = 8  # whose slices are in memory
IMAGES = 4096


class SeenVolume(NamedTuple):
    images: np.ndarray  # float32 [N, 128, 128] in [0, 1] of all canonical slices
    positions: np.ndarray  # float32 [N] in [0, 1]
    origin: SliceOrigin


class Views:
    """Images and masks of units at 128x128."""

    def __init__(self, session: Session):
        self.session = session
        self._volume = functools.lru_cache(VOLUMES)(self._see_volume)
        self._image = functools.lru_cache(IMAGES)(self._see_image)
        self._masks = functools.lru_cache(IMAGES)(self._see_masks)
        self._ignored = functools.lru_cache(IMAGES)(self._see_ignored)

    def image(self, unit: str) -> np.ndarray:
        """float32 [128, 128] in [0, 1] of an image or slice. Raises ImageError."""
        item, k = self.session.project.find(unit)
        if k is None:
            return self._image(unit, self._state(unit))
        return self.volume(item.name).images[item.canonical(k)]

    def position(self, unit: str) -> float | None:
        """Where a slice lies along its volume, in [0, 1]; None for an image."""
        item, k = self.session.project.find(unit)
        return None if k is None else float(self.volume(item.name).positions[item.canonical(k)])

    def volume(self, name: str) -> SeenVolume:
        return self._volume(name, self._state(name), self.session.project.window)

    def masks(self, unit: str, labels: tuple[int, ...]) -> np.ndarray:
        """uint8 0/1 [L, 128, 128] of the accepted label of an image or slice."""
        mark = self.session.mark_of(unit)
        return self._masks(unit, mark.label if mark else "", self._state(unit), labels)

    def ignored(self, unit: str) -> np.ndarray:
        """bool [128, 128]: pixels of an image or slice that its accepted label says nothing of."""
        mark = self.session.mark_of(unit)
        return self._ignored(unit, mark.label if mark else "", self._state(unit))

    def strokes(self, unit: str, ids: np.ndarray, labels: tuple[int, ...]) -> Strokes:
        """Corrections of an image or slice as the network sees them: ids [H, W], UNSAID where nothing is said."""
        if self.session.project.find(unit)[1] is None:
            return see_corrections(ids, labels)
        volume, origin = self._as_volume(unit, ids)
        found = [stroke_slices(volume, volume.data != UNSAID, OFFICIAL_SIZE, origin, label) for label in labels]
        return Strokes(np.stack([masks[0] for masks, _ in found]), found[0][1][0])

    def ids(self, unit: str) -> frozenset[int]:
        """The ids of structures in the accepted label of an image or slice."""
        mask = self.session.mask(unit)
        return (
            frozenset() if mask is None else frozenset(np.unique(mask).tolist()) & set(self.session.project.structures)
        )

    def restored(self, unit: str, probabilities: np.ndarray) -> np.ndarray:
        """Probabilities [L, 128, 128] → float32 [L, H, W] on the pixels of the image or slice."""
        if self.session.project.find(unit)[1] is None:
            shape = self.session.image(unit).shape
            return np.stack([restore(p, (shape[0], shape[1])) for p in probabilities])
        origin = self._slice_origin(unit)
        return np.stack([plane(from_slices(p[None], origin).data, origin.axis, 0) for p in probabilities])

    def _state(self, unit: str) -> tuple[int, int]:
        item, _ = self.session.project.find(unit)
        return stamp(self.session.project.image_file(item))

    def _see_image(self, unit: str, _: tuple[int, int]) -> np.ndarray:
        image = self.session.image(unit)
        assert isinstance(image, np.ndarray)
        return preprocess_image(image, OFFICIAL_SIZE)

    def _see_volume(self, name: str, _: tuple[int, int], window: Window) -> SeenVolume:
        volume = self.session.image(name)
        assert isinstance(volume, Volume)
        axis = self.session.project.items[name].axis
        images, positions, origin = volume_slices(volume, OFFICIAL_SIZE, axis, window, every=True)
        # Without the voxels, which the session reads again when they are needed
        origin = replace(origin, volume=replace(volume, data=np.broadcast_to(np.float32(0), volume.shape)))
        return SeenVolume(images, positions, origin)

    def _see_masks(self, unit: str, _: str, __: tuple[int, int], labels: tuple[int, ...]) -> np.ndarray:
        mask = self.session.mask(unit)
        assert mask is not None
        void = self._void(mask)
        if self.session.project.find(unit)[1] is None:
            return np.stack([mask_at(OFFICIAL_SIZE, mask, i, mask.shape, void) for i in labels])
        volume, origin = self._as_volume(unit, mask)
        empty = None if void is None else self._as_volume(unit, void)[0].data
        return np.stack([mask_slices(volume, OFFICIAL_SIZE, origin, i, empty)[0] for i in labels])

    def _see_ignored(self, unit: str, _: str, __: tuple[int, int]) -> np.ndarray:
        mask = self.session.mask(unit)
        assert mask is not None
        if (void := self._void(mask)) is None:
            return np.zeros((OFFICIAL_SIZE, OFFICIAL_SIZE), bool)
        if self.session.project.find(unit)[1] is None:
            return preprocess_ignored(void, OFFICIAL_SIZE)
        volume, origin = self._as_volume(unit, void)
        return ignored_slices(volume, OFFICIAL_SIZE, origin)[0]

    def _as_volume(self, unit: str, values: np.ndarray) -> tuple[Volume, SliceOrigin]:
        """A slice's values [H, W] as a volume of one slice, and how the network sees it."""
        origin = self._slice_origin(unit)
        return replace(origin.volume, data=from_planes(values[None], origin.axis)), origin

    def _void(self, mask: np.ndarray) -> np.ndarray | None:
        """bool [H, W]: pixels of an accepted label that are ignored; None for none."""
        ignored = self.session.project.ignored
        return None if ignored is None or ignored not in mask else mask == ignored

    def _slice_origin(self, unit: str) -> SliceOrigin:
        """Of a slice as a volume of its own, whose planes are cut and padded as in the whole one."""
        item, _ = self.session.project.find(unit)
        whole = self.volume(item.name).origin
        x, y, z = (1 if a == whole.axis else n for a, n in enumerate(whole.shape))
        alone = np.take(whole.volume.data, [0], whole.axis)
        return SliceOrigin(replace(whole.volume, data=alone), whole.axis, (x, y, z), whole.side)
