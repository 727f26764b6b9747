"""Predicts all that is left of a project: images one by one, volumes from their accepted slices."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from universeg_jax.annotation.assistant import Assistant
from universeg_jax.annotation.project import Item
from universeg_jax.errors import UserError
from universeg_jax.prediction.complete import complete
from universeg_jax.readers.labelled_slices import LabelledSlices
from universeg_jax.readers.slices import from_planes, plane
from universeg_jax.readers.volume_files import write_like
from universeg_jax.readers.volumes import Volume
from universeg_jax.reports.files import atomic_write, write_csv


def predict_rest(assistant: Assistant, progress: bool = False) -> list[dict[str, Any]]:
    """Writes predictions/ and predictions/predictions.csv; returns its rows. Raises UserError without a label."""
    session = assistant.session
    session.check_sound()
    if assistant.pool() is None:
        none = "no accepted label shows a structure yet" if session.labelled() else "nothing is labelled yet"
        raise UserError(f"{session.project.path}: {none}: accept a label first")
    left = {session.project.find(unit)[0].name for unit in session.left()}
    rows = []
    for name in tqdm(left_in_order(assistant, left), "predict", unit="image", disable=not progress):
        item = session.project.items[name]
        if item.volume:
            mask = predict_volume(assistant, item, progress)
            confidence = ""
        else:
            prediction = assistant.predict(name)
            assert prediction is not None
            mask = prediction.mask
            confidence = f"{np.mean([prediction.confidence(i) for i in prediction.labels]):.3f}"
        file = write_prediction(assistant, name, mask)
        count = len(session.slices(name)) if item.volume else 0
        rows.append({"image": name, "file": file.name, "confidence": confidence, "accepted_slices": count})
    if rows:
        write_csv(session.project.path / "predictions" / "predictions.csv", rows)
    return rows


def left_in_order(assistant: Assistant, left: set[str]) -> list[str]:
    """Images and volumes of which anything is left, in their natural order."""
    names = (assistant.session.project.find(unit)[0].name for unit in assistant.session.units())
    return [name for name in dict.fromkeys(names) if name in left]


def predict_volume(assistant: Assistant, item: Item, progress: bool = False) -> np.ndarray:
    """int32 ids [X, Y, Z] in canonical axes; accepted pixels are as they were accepted.

    Accepted slices are completed as by `universeg complete`, which takes those with ignored pixels for not labelled;
    without any other, each slice is predicted by itself.
    """
    session, axis, ignored = assistant.session, int(item.axis or 0), assistant.session.project.ignored
    known = {item.canonical(k): mask for k, mask in session.slices(item.name).items()}
    whole = {i: mask for i, mask in known.items() if ignored is None or ignored not in mask}
    if any(mask.any() for mask in whole.values()):
        planes = _completed(assistant, item, whole, progress)
    else:
        planes = []
        for i in range(item.slices):
            unit = f"{item.name}/{item.canonical(i)}"
            prediction = None if i in whole else assistant.predict(unit, itself=i in known)
            planes.append(known[i] if prediction is None else prediction.mask)
    for i, mask in known.items():
        planes[i] = mask if i in whole else np.where(mask == ignored, planes[i], mask)
    return from_planes(np.stack(planes), axis).astype(np.int32)


def _completed(assistant: Assistant, item: Item, whole: dict[int, np.ndarray], progress: bool) -> list[np.ndarray]:
    """The planes of a volume of which those of `whole` are labelled."""
    session, axis = assistant.session, int(item.axis or 0)
    volume = session.image(item.name)
    assert isinstance(volume, Volume)
    stack = np.zeros((item.slices, *next(iter(whole.values())).shape), np.int32)
    for i, mask in whole.items():
        stack[i] = mask
    partial = replace(volume, data=from_planes(stack, axis))
    labelled = (LabelledSlices(axis, tuple(sorted(whole))),)
    others, window = assistant.examples_of_others(item.name), session.project.window
    completion = complete(assistant.predictor, volume, partial, labelled, others, window, progress=progress)
    return [plane(completion.mask, axis, i) for i in range(item.slices)]


def write_prediction(assistant: Assistant, unit: str, mask: np.ndarray) -> Path:
    """Writes a mask of an image, slice or whole volume into predictions/, whole or not at all."""
    session = assistant.session
    item, k = session.project.find(unit)
    file = session.project.prediction_file(unit)
    ids = mask.astype(np.uint8 if mask.max(initial=0) < 256 else np.uint16)
    with atomic_write(file) as temporary:
        if item.volume and k is None:
            volume = session.image(unit)
            assert isinstance(volume, Volume)
            write_like(temporary, ids, session.project.image_file(item), volume)
        else:
            Image.fromarray(ids).save(temporary, format="PNG")
    return file
