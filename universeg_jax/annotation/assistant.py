"""What the network adds to a session: predictions from all that is accepted, what to label next, the Dice to expect.

Of a slice, accepted slices of the same volume are the first examples, nearest first; then images and slices of others
that look most alike. Support sets are padded to powers of two, so that a new program is compiled at the 2nd, 3rd, 5th,
9th … accepted label only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from universeg_jax.annotation.features import image_features
from universeg_jax.annotation.policy import choose
from universeg_jax.annotation.session import Session
from universeg_jax.annotation.views import Views
from universeg_jax.episode import OFFICIAL_SIZE
from universeg_jax.errors import UserError
from universeg_jax.evaluation.intervals import CaseScores, Estimate, interval
from universeg_jax.evaluation.metrics import dice_on_host
from universeg_jax.prediction.corrections import UNSAID, keep_corrections
from universeg_jax.prediction.options import Options
from universeg_jax.prediction.predictor import Predictor, Segmenter, make_prediction
from universeg_jax.prediction.result import Prediction
from universeg_jax.prediction.selection import thumbnails
from universeg_jax.prediction.support import Support, read_support_folder
from universeg_jax.readers.meta import read_meta, subject_rule
from universeg_jax.readers.preprocess import preprocess_image, restore
from universeg_jax.readers.slices import from_slices, volume_slices
from universeg_jax.readers.volumes import Volume

CANDIDATES = 48  # of all that is left, among which `next` chooses
CHECKED = 64  # accepted labels by which the Dice to expect is measured
LEAST = 16  # capacity of a pool


@dataclass(frozen=True)
class Pool:
    """All examples; rows beyond them are padding."""

    units: tuple[str, ...]  # of the rows; "" of examples from elsewhere
    subjects: tuple[str, ...]
    segmenter: Segmenter

    @property
    def support(self) -> Support:
        return self.segmenter.support


class Assistant:
    """A network that helps with a session. Not thread-safe: one worker asks it."""

    def __init__(self, session: Session, predictor: Predictor):
        self.session, self.predictor = session, predictor
        self.views = Views(session)
        self._pool: tuple[int, Pool | None] = (-1, None)
        self._elsewhere: Support | None = None
        self._features: dict[str, np.ndarray] = {}
        self._ids: dict[tuple[str, str], frozenset[int]] = {}

    def pool(self) -> Pool | None:
        """All accepted examples, and those of the project's support folder; None where there is no label yet."""
        with self.session.alone():  # another thread may accept
            if self._pool[0] != self.session.version:
                self.session.check_sound()
                self._pool = self.session.version, self._make_pool()
            return self._pool[1]

    def _make_pool(self) -> Pool | None:
        units = self.session.labelled()
        others = self._read_elsewhere()
        labels = sorted(set().union(*map(self._ids_of, units), others.labels if others else ()))
        if not labels:
            return None
        ids = tuple(labels)
        images, masks = [self.views.image(u) for u in units], [self.views.masks(u, ids) for u in units]
        if others:
            images += list(others.images)
            empty = np.zeros(others.images.shape, np.uint8)
            found = [others.masks[others.labels.index(i)] if i in others.labels else empty for i in ids]
            masks += list(np.stack(found, 1))
        if not np.any(masks):
            return None
        names = (*units, *[""] * (len(images) - len(units)))
        padding = max(LEAST, _power_of_two(len(images))) - len(images)
        black = [np.zeros_like(images[0])] * padding, [np.zeros_like(masks[0])] * padding
        ignored = np.zeros((len(images) + padding, *images[0].shape), bool)
        for row, unit in enumerate(units):
            ignored[row] = self.views.ignored(unit)
        if others:
            ignored[len(units) : len(images)] = ~others.known
        support = Support(
            np.stack([*images, *black[0]]),
            np.stack([*masks, *black[1]], 1),
            ids,
            (*names, *[""] * padding),
            (*names, *[""] * padding),
            ignored=ignored,
        )
        options = Options(support_size=self.session.project.support_size)
        subject = self._subject_rule()
        subjects = tuple(subject(self.session.project.find(unit)[0].name) for unit in units)
        return Pool(names, subjects, self.predictor.segmenter(support, options))

    def _ids_of(self, unit: str) -> frozenset[int]:
        mark = self.session.mark_of(unit)
        key = unit, mark.label if mark else ""
        if key not in self._ids:
            self._ids[key] = self.views.ids(unit)
        return self._ids[key]

    def _subject_rule(self) -> Callable[[str], str]:
        path = self.session.project.path
        return subject_rule(path, read_meta(path), lambda name: name.rpartition("_")[0] or name)

    def _read_elsewhere(self) -> Support | None:
        folder = self.session.project.support
        if folder and self._elsewhere is None:
            support = read_support_folder(Path(folder))
            if support.overlapping:
                raise UserError(f"{folder}: its labels overlap, and a project has one label for each pixel")
            if not set(support.labels) <= set(self.session.project.structures):
                ids = [list(each) for each in (support.labels, self.session.project.structures)]
                raise UserError(f"{folder}: its labels are {ids[0]}, those of the project {ids[1]}; use the same ids")
            self._elsewhere = support
        return self._elsewhere

    def rows_for(self, pool: Pool, unit: str, allowed: np.ndarray) -> np.ndarray:
        """Rows, int [S], of the examples for an image or slice among `allowed` rows; -1 is padding."""
        item, k = self.session.project.find(unit)
        own: list[int] = [r for r in allowed if k is not None and pool.units[r].rpartition("/")[0] == item.name]
        own.sort(key=lambda r: abs(int(pool.units[r].rpartition("/")[2]) - (k or 0)))
        return self._most_alike(pool, self.views.image(unit), own, [r for r in allowed if r not in set(own)])

    def _most_alike(self, pool: Pool, image: np.ndarray, own: Sequence[int], rest: Sequence[int]) -> np.ndarray:
        """The rows `own` and then those of `rest` whose images are most alike, padded."""
        if len(rest):
            alike = thumbnails(pool.support.images[list(rest)]) @ thumbnails(image[None])[0]
            rest = [rest[i] for i in np.argsort(-alike, kind="stable")]
        rows = np.array([*own, *rest][: self.session.project.support_size], int)
        return np.concatenate([rows, np.full(_power_of_two(len(rows)) - len(rows), -1)])

    def probabilities(
        self,
        unit: str,
        others: Sequence[int] | None = None,
        pool: Pool | None = None,
        corrections: np.ndarray | None = None,
    ) -> np.ndarray | None:
        """Float32 [L, 128, 128] of an image or slice from the rows `others` (default: all but itself) of the pool.

        `corrections`, int [H, W], guide them, as in `predict`. None where there is no example.
        """
        pool = pool or self.pool()
        if pool is None:
            return None
        everything = [r for r, name in enumerate(pool.units) if name != unit]
        allowed = np.array(everything if others is None else others, int)
        if not len(allowed) or not pool.support.masks[:, allowed].any():
            return None
        rows, image = self.rows_for(pool, unit, allowed)[None], self.views.image(unit)
        if corrections is None:
            return pool.segmenter.by_rows(image[None], rows[None])[0]
        return pool.segmenter.guided(image, self.views.strokes(unit, corrections, pool.support.labels), rows)

    def predict(self, unit: str, itself: bool = False, corrections: np.ndarray | None = None) -> Prediction | None:
        """Segments an image or slice at its own size; None where there is no example. Raises UserError.

        `itself`: its own accepted label, which leaves pixels out, is an example too. `corrections`, int32 [H, W]: the
        ids that a person gave to pixels, UNSAID elsewhere. The mask keeps them, and they guide the rest of it.
        """
        pool = self.pool()
        others = range(len(pool.units)) if pool and itself else None
        guide = None if corrections is None else self._guide(corrections)
        if pool is None or (found := self.probabilities(unit, others, pool, guide)) is None:
            return None
        restored, labels = self.views.restored(unit, found), pool.support.labels
        if corrections is None:
            return make_prediction(restored, labels)
        prediction = make_prediction(keep_corrections(restored, corrections, labels), labels)
        mask = np.where(corrections == UNSAID, prediction.mask, corrections)  # of labels without an example, too
        return replace(prediction, mask=mask)

    def _guide(self, corrections: np.ndarray) -> np.ndarray | None:
        """Corrections without what is to be ignored; None where nothing else is said, or the model cannot use it."""
        ignored = self.session.project.ignored
        said = corrections if ignored is None else np.where(corrections == ignored, UNSAID, corrections)
        return said if (said != UNSAID).any() and self.can_be_guided else None

    @property
    def can_be_guided(self) -> bool:
        """Whether the model can use corrections; if it cannot, the mask only keeps them."""
        return self.predictor.forward.weighs_labels

    def predict_other(self, content: np.ndarray | Volume) -> np.ndarray | None:
        """The mask of an image [H, W] or volume [X, Y, Z] that is not of the project; None without examples."""
        pool = self.pool()
        if pool is None:
            return None
        everything = range(len(pool.units))
        if isinstance(content, np.ndarray):
            image = preprocess_image(content, OFFICIAL_SIZE)
            rows = self._most_alike(pool, image, (), everything)[None, None]
            found = pool.segmenter.by_rows(image[None], rows)[0]
            return make_prediction(np.stack([restore(p, content.shape) for p in found]), pool.support.labels).mask
        images, _, origin = volume_slices(content, OFFICIAL_SIZE, None, self.session.project.window)
        rows = np.stack([self._most_alike(pool, image, (), everything) for image in images])[:, None]
        found = pool.segmenter.by_rows(images, rows)
        whole = np.stack([from_slices(found[:, i], origin).data for i in range(found.shape[1])])
        return make_prediction(whole, pool.support.labels).mask

    def next(self, order: str = "", skipped: Sequence[str] = ()) -> str:
        """The image or slice to label next, by `order` (default: the project's). Raises UserError if none is left."""
        self.session.check_sound()
        order, everything = order or self.session.project.order, self.session.units()
        left = [unit for unit in self.session.left() if unit not in set(skipped)]
        if not left:
            raise UserError(f"{self.session.project.path}: nothing is left to label")
        labelled = self.session.labelled()
        if order in ("diverse", "doubt") and len(left) > CANDIDATES:
            left = [left[i] for i in np.linspace(0, len(left) - 1, CANDIDATES).round().astype(int)]
        table = [*left, *labelled] if order in ("diverse", "doubt") else everything
        number = {unit: row for row, unit in enumerate(table)}
        row = choose(
            order,
            [number[unit] for unit in left],
            [number[unit] for unit in labelled],
            lambda: self.features(table),
            lambda: np.array([self.expected(unit) for unit in left]),
        )
        return table[row]

    def features(self, units: Sequence[str]) -> np.ndarray:
        """Unit vectors [N, D] of images and slices."""
        if new := [unit for unit in units if unit not in self._features]:
            found = image_features(self.predictor, np.stack([self.views.image(unit) for unit in new]))
            self._features.update(zip(new, found, strict=True))
        return np.stack([self._features[unit] for unit in units])

    def expected(self, unit: str) -> float:
        """The Dice that the network expects of its prediction, the mean over labels; 0 without an example.

        An empty mask counts as 0, or, where an accepted example lacks the label too, as how sure the network is.
        """
        pool = self.pool()
        if pool is None or (found := self.probabilities(unit, pool=pool)) is None:
            return 0.0
        masks = pool.support.masks[:, : len(pool.units)]
        return float(np.mean([_expected(p, all(m.any() for m in of)) for p, of in zip(found, masks, strict=True)]))

    def expected_dice(self, progress: bool = False) -> Estimate | None:
        """The Dice of each accepted label predicted from the others, with its interval; None below two of them.

        The others are those of other subjects, or, where there is only one, other images and slices.
        """
        pool = self.pool()
        if pool is None:
            return None
        count, several = len(pool.subjects), len(set(pool.subjects)) > 1
        rows = np.unique(np.linspace(0, count - 1, min(count, CHECKED)).round().astype(int))
        scores: list[tuple[str, str, float]] = []
        for i in tqdm(rows, "leave one out", unit="label", leave=False, disable=not progress or len(rows) < 8):
            subject = pool.subjects[i]
            same = {r for r in range(count) if r == i or (several and pool.subjects[r] == subject)}
            others = [r for r in range(len(pool.units)) if r not in same]
            if (found := self.probabilities(pool.units[i], others, pool)) is None:
                continue
            for label, p, truth in zip(pool.support.labels, found, pool.support.masks[:, i], strict=True):
                if truth.any():
                    who = subject if several else pool.units[i]
                    mask = (p >= 0.5) & pool.support.known_of(i)
                    scores.append((str(label), who, float(dice_on_host(mask, truth))))
        if not scores:
            return None
        tasks, subjects, values = zip(*scores, strict=True)
        return interval(CaseScores(["project"] * len(scores), tasks, subjects, values)).overall

    def examples_of_others(self, name: str) -> Support | None:
        """The examples that are not of a volume, for its completion."""
        pool = self.pool()
        if pool is None:
            return None
        find = self.session.project.find
        rows = [r for r, unit in enumerate(pool.units) if not unit or find(unit)[0].name != name]
        return pool.support.take(rows) if rows else None


def _expected(p: np.ndarray, always_present: bool) -> float:
    mask = p >= 0.5
    if not mask.any():
        return 0.0 if always_present else float(1 - p.max())
    return float(2 * p[mask].sum() / (p.sum() + mask.sum()))


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length() if count > 1 else 1
