"""Labels of the slices between labelled ones, along one axis of a volume.

Three things are added up for each label and each slice of a gap:

1. The signed distance to the outline, interpolated between the two labelled slices, says where the structure is. Each
   of the two is first carried along with the structures of the image (motion.py).
2. The network says what it is: it looks at a window around the structure, with the nearest labelled slices, carried
   to the same place, as its support.
3. The sum is smoothed across the slices, between the labelled ones.

A pixel gets the label of the largest sum, or background if none is above 0.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from scipy.ndimage import gaussian_filter1d

from universeg_jax.errors import UserError
from universeg_jax.prediction.gaps import Gap, Window, nearest_slices, window_around
from universeg_jax.prediction.interpolation import signed_distances
from universeg_jax.prediction.motion import Motion, carry
from universeg_jax.prediction.support import Support

if TYPE_CHECKING:
    from universeg_jax.prediction.predictor import Predictor

TIMES = 2.0  # side of the window, in the longer side of the structure in the two labelled slices
WEIGHTS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 64.0)  # times distance_weight; the last leaves the network no say
CHECKED = 6  # labelled slices of a label to choose on
SLACK = 0.01  # Dice, up to which mixes are nearly equal
CLOSER = 2.0  # a gap of half the length deserves this weight times: interpolation gains more by it than the network
AT_ONCE = 16  # windows per forward pass; on a CPU one
MAX_SCORE = 30.0  # of which the exponential is taken, and margin of background where no label is near
SIZE = 128  # pixels along a window in which distances count: a magnified structure is as large as it looks


@dataclass(frozen=True)
class CompletionOptions:
    """Options of `complete`. Raises UserError for a value out of range."""

    support_size: int = 8  # labelled slices that the network sees
    distance_weight: float = 0.5  # of the signed distance in pixels of a window of SIZE, against the network's logit
    smooth: float = 0.5  # slices; standard deviation of a Gaussian across them
    motion: bool = True  # carry labelled slices along with the image; False: interpolate in place
    choose: bool = True  # choose motion and weight for each label on labelled slices; False: as given
    network: bool = True  # False: interpolate alone, in a fraction of the time

    def __post_init__(self) -> None:
        if self.support_size < 1:
            raise UserError(f"support_size={self.support_size}: use at least 1")
        if not (0 <= self.distance_weight < np.inf and 0 <= self.smooth < np.inf):
            values = f"distance_weight={self.distance_weight}, smooth={self.smooth}"
            raise UserError(f"{values}: both must be 0 or more, and finite")
        if not (self.network or self.distance_weight):
            raise UserError("distance_weight=0 without the network leaves nothing to complete from: use above 0")


@dataclass(frozen=True)
class Labelled:
    """A partly labelled volume along one axis, in planes of square pixels."""

    planes: np.ndarray  # float32 [N, H, W] in [0, 1]
    ids: np.ndarray  # int32 [N, H, W]
    slices: tuple[int, ...]  # the labelled ones, ascending

    def of(self, gap: Gap) -> tuple[int, ...]:
        """The labels of the slices beside a gap."""
        beside = self.ids[[z for z in (gap.before, gap.after) if z is not None]]
        return tuple(np.unique(beside[beside > 0]).tolist())

    def pair(self, gap: Gap, label: int) -> tuple[np.ndarray, np.ndarray]:
        """The masks [H, W] before and after a gap; beyond the first or last labelled slice, the same one twice."""
        before = gap.after if gap.before is None else gap.before
        after = gap.before if gap.after is None else gap.after
        return self.ids[before] == label, self.ids[after] == label


@dataclass(frozen=True)
class Filled:
    """The slices of a gap: int32 ids, float32 uncertainty in [0, 1], and float32 margin of the label above the next."""

    ids: np.ndarray
    uncertainty: np.ndarray
    margin: np.ndarray


@dataclass(frozen=True)
class Parts:
    """What is known of a label in a window of each slice of a gap, before it is added up."""

    window: Window
    in_place: np.ndarray  # float32 [n, h, w], the interpolated signed distance in pixels of the network
    moved: np.ndarray  # the same, carried along with the image; empty without motion
    logits: np.ndarray  # float32 [n, h, w], of the network; 0 without it
    ends: np.ndarray  # float32 [2, h, w], the distances of the labelled slices


@dataclass(frozen=True)
class Mix:
    """How the parts are added up."""

    moved: bool
    weight: float  # of the distance, against the network's logits

    def of(self, parts: Parts) -> np.ndarray:
        return parts.logits + np.float32(self.weight) * (parts.moved if self.moved else parts.in_place)


@dataclass(frozen=True)
class Setting:
    """What all gaps of an axis share."""

    predictor: "Predictor"
    volume: Labelled
    motion: Motion
    others: Support | None  # examples of other cases
    options: CompletionOptions
    advance: Callable[[int], Any] = lambda count: None  # is told how many slices of a label are done
    mixes: Mapping[int, Mix] = field(default_factory=dict)  # of the labels, where they were chosen


def fill_gap(setting: Setting, gap: Gap) -> Filled:
    """Labels the slices of a gap."""
    volume = setting.volume
    shape = (len(gap), *volume.planes.shape[1:])
    ids, best, second = np.zeros(shape, np.int32), np.zeros(shape, np.float32), np.full(shape, -MAX_SCORE, np.float32)
    mass, weighted = np.ones(shape, np.float32), np.zeros(shape, np.float32)  # Σ e^s and Σ s e^s; background: s = 0
    for label in volume.of(gap):
        window, score = _score(setting, gap, label)
        where = (slice(None), *window.part(shape))
        second[where] = np.maximum(second[where], np.minimum(score, best[where]))
        ids[where] = np.where(score > best[where], label, ids[where])
        best[where] = np.maximum(best[where], score)
        bounded = np.minimum(score, MAX_SCORE)
        mass[where] += np.exp(bounded)
        weighted[where] += bounded * np.exp(bounded)
    entropy = (np.log(mass) - weighted / mass) / np.log(2)
    return Filled(ids, np.clip(entropy, 0, 1).astype(np.float32), best - second)


def _score(setting: Setting, gap: Gap, label: int) -> tuple[Window, np.ndarray]:
    """(window, score float32 [n, h, w] of a label in it, above 0 where it is more likely than background)."""
    parts = _parts(setting, gap, label)
    mix = setting.mixes.get(label, Mix(setting.options.motion, setting.options.distance_weight))
    score = mix.of(parts)
    first = mix.weight * parts.ends[:1] if gap.before is not None else score[:1]
    last = mix.weight * parts.ends[1:] if gap.after is not None else score[-1:]
    if setting.options.smooth:
        padded = np.concatenate([first, score, last])
        score = gaussian_filter1d(padded, setting.options.smooth, axis=0, mode="nearest")[1:-1]
    return parts.window, score


def _parts(setting: Setting, gap: Gap, label: int) -> Parts:
    options, planes = setting.options, setting.volume.planes
    before, after = setting.volume.pair(gap, label)
    window = window_around(before | after, TIMES)
    part, scale = window.part(planes.shape), np.float32(SIZE / window.side)
    pair = signed_distances(before, after)
    in_place = scale * _interpolated(setting, gap, window, pair, motion=False)
    moved = scale * _interpolated(setting, gap, window, pair, motion=True) if options.motion else in_place[:0]
    logits = np.zeros_like(in_place)
    if options.network:
        inputs = (_input(setting, gap, z, label, window) for z in range(gap.start, gap.stop))
        logits = np.stack([window.back(each, planes.shape) for each in _in_batches(setting, inputs)])
    else:
        setting.advance(len(gap))
    return Parts(window, in_place, moved, logits, scale * np.stack([each[part] for each in pair]))


def choose_mixes(setting: Setting) -> dict[int, Mix]:
    """For each label, how to add up what is known, chosen on labelled slices that are taken for unlabelled ones.

    Each of up to CHECKED labelled slices is completed from the others. The mix with the best mean Dice counts, of
    nearly equal ones that with the largest weight of the distance. The weight is then raised by CLOSER: the slices that
    are left lie half as far from a labelled one.
    """
    found: dict[int, Mix] = {}
    for label, checks in checks_of(setting.volume, setting.options).items():
        dices = [_dices_without(setting, label, k) for k in checks]
        if dices:
            mean = np.mean(dices, 0)
            good = [mix for mix, dice in zip(_mixes(setting.options), mean, strict=True) if dice >= mean.max() - SLACK]
            best = max(good, key=lambda mix: (mix.weight, mix.moved))
            found[label] = replace(best, weight=CLOSER * best.weight)
    return found


def checks_of(volume: Labelled, options: CompletionOptions) -> dict[int, list[int]]:
    """For each label, the labelled slices to choose on, as places among the labelled slices."""
    slices, found = volume.slices, {}
    for label in np.unique(volume.ids[list(slices)]).tolist() if options.network and options.choose else []:
        shows = [bool((volume.ids[z] == label).any()) for z in slices]
        inner = range(1, len(slices) - 1)
        usable = [k for k in inner if label and shows[k] and (shows[k - 1] or shows[k + 1]) and _is_apart(slices, k)]
        rows = np.unique(np.linspace(0, len(usable) - 1, min(CHECKED, len(usable))).round().astype(int))
        found[label] = [usable[row] for row in rows]
    return found


def _is_apart(slices: tuple[int, ...], k: int) -> bool:
    return slices[k] - slices[k - 1] > 1 and slices[k + 1] - slices[k] > 1


def _dices_without(setting: Setting, label: int, k: int) -> list[float]:
    """The Dice of each mix in labelled slice k, completed from the others."""
    slices, z = setting.volume.slices, setting.volume.slices[k]
    volume = replace(setting.volume, slices=slices[:k] + slices[k + 1 :])
    parts = _parts(replace(setting, volume=volume), Gap(z, z + 1, slices[k - 1], slices[k + 1]), label)
    truth = setting.volume.ids[z] == label
    inside = truth[parts.window.part(truth.shape)]
    masks = [mix.of(parts)[0] > 0 for mix in _mixes(setting.options)]
    return [float(2 * (mask & inside).sum() / (mask.sum() + truth.sum())) for mask in masks]


def _mixes(options: CompletionOptions) -> list[Mix]:
    motions = (True, False) if options.motion else (False,)
    return [Mix(moved, options.distance_weight * times) for moved in motions for times in WEIGHTS]


def _interpolated(
    setting: Setting, gap: Gap, window: Window, pair: tuple[np.ndarray, np.ndarray], motion: bool
) -> np.ndarray:
    """The signed distance, float32 [n, h, w] in pixels of the plane, from those of the two labelled slices."""
    part = window.part(pair[0].shape)
    found = []
    for z, share in zip(range(gap.start, gap.stop), gap.shares(), strict=True):
        known = [(pair[0], gap.before, 1 - share), (pair[1], gap.after, share)]
        moved = (
            weight * (_carried(setting, distance, source, z, window) if motion else distance)[part]
            for distance, source, weight in known
            if source is not None
        )
        found.append(sum(moved))
    return np.stack(found).astype(np.float32)


def _carried(setting: Setting, values: np.ndarray, source: int, index: int, window: Window) -> np.ndarray:
    """Values [H, W] of a labelled slice where its structures lie in slice `index`, at least in the window."""
    if not setting.options.motion:
        return values
    return carry(values, setting.motion.to(source, index), window.part(values.shape))


def _input(setting: Setting, gap: Gap, index: int, label: int, window: Window) -> tuple[np.ndarray, ...]:
    """(query [size, size], images [S, size, size], masks likewise, float32 [S] that is 0 for places left free, and
    float32 [S, size, size] that is 0 for pixels without a label).
    """
    volume, count = setting.volume, setting.options.support_size
    size = setting.predictor.config.image_size
    images, masks = (np.zeros((count, size, size), np.float32) for _ in range(2))
    present, known = np.zeros(count, np.float32), np.ones((count, size, size), np.float32)
    own = nearest_slices(volume.slices, gap, count).tolist()
    for row, z in enumerate(own):
        image = _carried(setting, volume.planes[z], z, index, window)
        mask = _carried(setting, (volume.ids[z] == label).astype(np.float32), z, index, window)
        images[row], masks[row], present[row] = window.image(image, size), window.mask(mask, size), 1
    place = (index + 0.5) / len(volume.planes)
    others = _of_others(setting.others, label, place)
    for row, (image, mask, empty) in zip(range(len(own), count), others, strict=False):
        around = window_around(mask, TIMES)
        images[row], masks[row], present[row] = around.image(image, size), around.mask(mask, size), 1
        known[row] = 1 if empty is None else 1 - around.mask(empty, size)
    return window.image(volume.planes[index], size), images, masks, present, known


def _of_others(
    others: Support | None, label: int, place: float
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """(image, mask [128, 128], pixels without a label) of other cases that show a label, from the most similar place in
    their volumes on.
    """
    if others is None or label not in others.labels:
        return
    masks = others.masks[others.labels.index(label)] > 0
    apart = np.zeros(len(others)) if others.positions is None else np.abs(others.positions - place)
    for row in np.argsort(apart, kind="stable"):
        if masks[row].any():
            yield others.images[row], masks[row], None if others.ignored is None else others.ignored[row]


def _in_batches(setting: Setting, inputs: Iterable[tuple[np.ndarray, ...]]) -> Iterator[np.ndarray]:
    """The network's logits [size, size] of each of `inputs`."""
    at_once, left = (1 if jax.default_backend() == "cpu" else AT_ONCE), iter(inputs)
    while batch := list(itertools.islice(left, at_once)):
        padded = batch + batch[-1:] * (at_once - len(batch))
        query, images, masks, present, known = (np.stack(parts) for parts in zip(*padded, strict=True))
        episode = (query[..., None], images[..., None], masks[..., None], present)
        in_part = setting.others is not None and setting.others.ignored is not None
        logits = setting.predictor.logits(*episode, known[..., None] if in_part else None)
        yield from np.asarray(logits)[: len(batch), ..., 0]
        setting.advance(len(batch))
