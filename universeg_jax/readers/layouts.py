"""nnU-Net and Medical Segmentation Decathlon folders, recognised by their dataset.json.

    dataset.json                    channel_names or modality, labels; for the Decathlon also the list "training"
    imagesTr/<case>_0000.nii.gz     nnU-Net: one file per channel
    imagesTr/<case>.nii.gz          Decathlon: all channels in one file
    labelsTr/<case>.nii.gz

Each channel is a modality of its own, except that one `_0000` file in colour stands for all of them, as in nnU-Net's
dataset of natural images. Each case is its own subject unless meta.json says otherwise, because the part of
"liver_12" before the "_" is no patient. Regions of nnU-Net, [1, 2, 3], are labels that may overlap; its label "ignore"
is no class, and marks pixels without a label. Images without labels, imagesTs among them, are not read. A label without
its image and a listed case that does not exist are faulty cases: they are dropped and counted, unless every case is
faulty.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from universeg_jax.readers.cases import Case, may_be_case
from universeg_jax.readers.errors import FolderError
from universeg_jax.readers.file_names import IMAGE_EXTENSIONS, READABLE_EXTENSIONS, extension, natural_order, stem
from universeg_jax.readers.images import FORMATS
from universeg_jax.readers.labels import LabelFile
from universeg_jax.readers.meta import Folder, read_json_object, read_meta, subject_rule
from universeg_jax.readers.palettes import check_palettes
from universeg_jax.readers.volume_files import is_volume

Classes = tuple[tuple[int, tuple[int, ...]], ...]  # as in LabelFile


def is_dataset_json(path: Path) -> bool:
    """True for a folder in the layout of nnU-Net or the Decathlon."""
    return (path / "dataset.json").is_file() and (path / "imagesTr").is_dir()


def read_dataset_json(path: Path, size: int, ignore: Sequence[int] = ()) -> Folder[Case]:
    """Reads the cases of such a folder, in natural order; `ignore` as in `read_folder`. Raises FolderError."""
    file = path / "dataset.json"
    spec, meta = read_json_object(file), read_meta(path)
    channels = _channels(file, spec)
    labels, classes, ignored_values = read_classes(file, spec)
    names = {**labels, **meta.labels}
    ignored_values = tuple(dict.fromkeys((*ignored_values, *meta.ignore, *ignore)))
    if not classes:  # the ids of regions are no values of the files
        names = {i: name for i, name in names.items() if i not in ignored_values}
    if ignored_values and not classes:
        classes = tuple((i, (i,)) for i in names)
    subject = subject_rule(path, meta, lambda name: name)
    listed = _listed_cases(path, spec)
    files = _label_files(path, file, spec)
    pairs = listed or {stem(label): (None, label) for label in files}
    copies = Counter() if listed else Counter(stem(label) for label in files)
    cases, used = [], set()
    for name, (image, label) in pairs.items():
        images = [image] * len(channels) if image else _channel_files(path, name, label, len(channels))
        in_one_file = image is not None and len(channels) > 1
        modalities = channels
        if _is_colour(images):
            images, modalities, in_one_file = images[:1], [", ".join(channels)], False
        for channel, (each, modality) in enumerate(zip(images, modalities, strict=True)):
            fault = _fault(each, label, copies[name])
            cases.append(
                Case(
                    image=str(label if fault[0] and label.exists() else each),
                    labels=() if fault[0] else (LabelFile(str(label), classes, ignored_values),),
                    subject=name if fault[0] else subject(name),
                    name=f"{name}_{channel:04d}" if len(modalities) > 1 else name,
                    size=size,
                    ids=() if classes else tuple(names),
                    ids_in="dataset.json or meta.json" if meta.labels else "dataset.json",
                    modality=f"{meta.modality} {modality}".strip(),
                    volume=is_volume(each),
                    channel=channel if in_one_file else None,
                    axes=meta.axes,
                    window=meta.window,
                    root=str(path),
                    fault=fault,
                )
            )
        used |= {label, *images}
    _check_any_complete(path, cases)
    check_palettes((file.path for case in cases if not case.volume for file in case.labels), has_table=False)
    others = [f for part in ("imagesTr", "labelsTr") for f in _files(path / part) if f not in used]
    return Folder(
        tuple(cases),
        labels=names,
        modality=meta.modality or ", ".join(channels),
        licence=meta.licence or str(spec.get("licence", spec.get("license", ""))),
        citation=meta.citation or str(spec.get("reference", "")),
        subjects_identifiable=meta.subjects_identifiable,
        ignored=tuple(f"{f.parent.name}/{f.name}" for f in others),
    )


def _is_colour(images: list[Path]) -> bool:
    """True where the first file is a colour image for all channels: it is listed for each, or the others are absent."""
    first, others = images[0], images[1:]
    if not others or extension(first) not in IMAGE_EXTENSIONS or not first.exists() or is_volume(first):
        return False
    if first not in others and any(other.exists() for other in others):
        return False
    try:
        with Image.open(first, formats=FORMATS) as image:
            return len(image.getbands()) >= 3 or image.mode == "P"
    except (OSError, ValueError, Image.DecompressionBombError):  # the image's reader then says what it is
        return False


def _check_any_complete(path: Path, cases: list[Case]) -> None:
    """Raises FolderError where there are no cases, or a channel has only faulty ones."""
    if not cases:
        raise FolderError(f"{path} holds no labels in labelsTr/; cases without labels are not read")
    for modality in dict.fromkeys(case.modality for case in cases):
        of_channel = [case for case in cases if case.modality == modality]
        if all(case.fault[0] for case in of_channel):
            raise FolderError(f"{of_channel[0].image}: {' ('.join(of_channel[0].fault)}); this holds for every case")


def _channels(file: Path, spec: dict[str, Any]) -> list[str]:
    names = spec.get("channel_names", spec.get("modality"))
    if isinstance(names, str) and names:
        names = [names]
    if isinstance(names, list):
        names = dict(enumerate(names))
    names = {str(k): str(name) for k, name in names.items()} if isinstance(names, dict) else names
    if not names or sorted(names) != sorted(map(str, range(len(names)))):
        raise FolderError(f'{file}: "channel_names" (or "modality") must be {{"0": "CT", …}}; it is {names!r}')
    return [names[str(k)] for k in range(len(names))]


def read_classes(file: Path, spec: dict[str, Any]) -> tuple[dict[int, str], Classes, tuple[int, ...]]:
    """Reads {"1": "liver"}, {"liver": 1} and regions {"organs": [1, 2]}: (id → name, classes, ignored values).

    `classes` is empty where the values of the files are the ids. Regions have the ids of "regions_class_order", with
    which nnU-Net writes them, else the numbers from 1.
    """
    labels = spec.get("labels") or None  # some test sets of the Decathlon have an empty list
    if isinstance(labels, list):
        labels = {str(i): name for i, name in enumerate(labels)}
    if not isinstance(labels, dict):
        raise FolderError(f'{file}: "labels" must be {{"background": 0, "liver": 1}}; it is {labels!r}')
    if all(str(key).isdecimal() and _ids(value) is None for key, value in labels.items()):
        labels = {str(name): int(key) for key, name in labels.items()}
    values: dict[str, tuple[int, ...]] = {}
    for name, value in labels.items():
        ids = _ids(value)
        if not ids:
            raise FolderError(f"{file}: label {name!r} is {value!r}; ids are whole numbers from 0")
        values[str(name)] = ids
    ignored = tuple(i for name in values if name.lower() == "ignore" for i in values[name])
    regions = {name: ids for name, ids in values.items() if ids != (0,) and name.lower() != "ignore"}
    if all(len(ids) == 1 for ids in regions.values()):
        names = {ids[0]: name for name, ids in regions.items()}
        if len(names) < len(regions):
            raise FolderError(f"{file}: two labels have one id: {labels!r}; give each an id of its own")
        return names, (), ignored
    order = spec.get("regions_class_order") or list(range(1, len(regions) + 1))
    ids = _ids(order)
    if ids is None or len(set(ids)) != len(regions) or 0 in ids:
        detail = f"it is {order!r} for {', '.join(regions)}"
        raise FolderError(f'{file}: "regions_class_order" must give each region an id of its own above 0; {detail}')
    return dict(zip(ids, regions, strict=True)), tuple(zip(ids, regions.values(), strict=True)), ignored


def _ids(value: Any) -> tuple[int, ...] | None:
    """The ids of 1, "1", 1.0, [1, 2] or ["1", "2"]; None where there are none."""
    ids = []
    for each in value if isinstance(value, list | tuple) else [value]:
        if isinstance(each, bool) or not re.fullmatch(r"[0-9]{1,9}(\.0)?", str(each).strip()):
            return None
        ids.append(int(float(each)))
    return tuple(ids) or None


def _listed_cases(path: Path, spec: dict[str, Any]) -> dict[str, tuple[Path | None, Path]]:
    """Case → (image, label) of the list "training"; the image is None where it does not exist under that name."""
    entries = spec.get("training") or []
    pairs: dict[str, tuple[Path | None, Path]] = {}
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict) or not {"image", "label"} <= entry.keys():
            raise FolderError(
                f'{path / "dataset.json"}: "training" must list {{"image": …, "label": …}}; it has {entry!r}'
            )
        image, label = (path / str(entry[part]) for part in ("image", "label"))
        for each in (image, label):
            if not each.resolve().is_relative_to(path.resolve()):
                raise FolderError(f"{path / 'dataset.json'}: {each} lies outside the folder")
        pairs[stem(label)] = (image if image.exists() else None, label)
    return {name: pairs[name] for name in natural_order(pairs)}


def _channel_files(path: Path, name: str, label: Path, count: int) -> list[Path]:
    """imagesTr/<case>_0000… of every channel, with the label's extension or any other. Some may not exist."""
    files = []
    for channel in range(count):
        file = path / "imagesTr" / f"{name}_{channel:04d}{extension(label)}"
        if not file.exists():
            candidates = filter(may_be_case, sorted(file.parent.glob(f"{_escaped(name)}_{channel:04d}.*")))
            file = next(candidates, file)
        files.append(file)
    return files


def _fault(image: Path, label: Path, copies: int) -> tuple[str, str]:
    """(problem, detail) of a case; ("", "") where it has one image and one label."""
    if not label.exists():
        return "has no label", f"add labelsTr/{label.name} or take it off the list of dataset.json"
    if not image.exists():
        return "has no image", f"add imagesTr/{image.name} or remove the label"
    if copies > 1:
        return "two files of one name", f"{copies} in labelsTr are called {stem(label)}; keep one of them"
    return "", ""


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _files(path: Path) -> list[Path]:
    names = [f.name for f in path.iterdir() if not f.name.startswith(".")] if path.is_dir() else []
    return [path / name for name in natural_order(names)]


def _label_files(path: Path, file: Path, spec: dict[str, Any]) -> list[Path]:
    """The files that may hold labels; nnU-Net keeps a .json with the spacing beside the .tif of a volume.

    Of those with one name that with "file_ending" counts, so that a preview beside a volume is not a second label.
    """
    ending = str(spec.get("file_ending") or "").lower()
    ending = f".{ending.lstrip('.')}" if ending else ""
    if ending and ending not in READABLE_EXTENSIONS:
        raise FolderError(f'{file}: "file_ending" is {ending!r}; read are {", ".join(READABLE_EXTENSIONS)}')
    files = [each for each in _files(path / "labelsTr") if may_be_case(each)]
    preferred = {stem(each) for each in files if extension(each) == ending}
    return [each for each in files if extension(each) == ending or stem(each) not in preferred]
