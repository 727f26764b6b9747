"""nnU-Net and Medical Segmentation Decathlon folders, recognised by their dataset.json.

    dataset.json                    channel_names or modality, labels; for the Decathlon also the list "training"
    imagesTr/<case>_0000.nii.gz     nnU-Net: one file per channel
    imagesTr/<case>.nii.gz          Decathlon: all channels in one file
    labelsTr/<case>.nii.gz

Each channel is a modality of its own. Each case is its own subject unless meta.json says otherwise, because the part of
"liver_12" before the "_" is no patient. Regions of nnU-Net, [1, 2, 3], are labels that may overlap; its label "ignore"
is no class. Images without labels, imagesTs among them, are not read. A label without its image and a listed case that
does not exist are faulty cases: they are dropped and counted, unless every case is faulty.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from universeg_jax.readers.cases import Case, may_be_case
from universeg_jax.readers.errors import FolderError
from universeg_jax.readers.file_names import extension, natural_order, stem
from universeg_jax.readers.labels import LabelFile
from universeg_jax.readers.meta import Folder, read_json_object, read_meta, subject_rule
from universeg_jax.readers.volume_files import is_volume

Classes = tuple[tuple[int, tuple[int, ...]], ...]  # as in LabelFile


def is_dataset_json(path: Path) -> bool:
    """True for a folder in the layout of nnU-Net or the Decathlon."""
    return (path / "dataset.json").is_file() and (path / "imagesTr").is_dir()


def read_dataset_json(path: Path, size: int) -> Folder[Case]:
    """Reads the cases of such a folder, in natural order. Raises FolderError."""
    file = path / "dataset.json"
    spec, meta = read_json_object(file), read_meta(path)
    channels = _channels(file, spec)
    labels, classes, ignored_values = _labels(file, spec)
    names = {**labels, **meta.labels}
    subject = subject_rule(path, meta, lambda name: name)
    listed = _listed_cases(path, spec)
    pairs = listed or {stem(label): (None, label) for label in _label_files(path)}
    copies = Counter() if listed else Counter(stem(label) for label in _label_files(path))
    cases, used = [], set()
    for name, (image, label) in pairs.items():
        images = [image] * len(channels) if image else _channel_files(path, name, label, len(channels))
        in_one_file = image is not None and len(channels) > 1
        for channel, (each, modality) in enumerate(zip(images, channels, strict=True)):
            fault = _fault(each, label, copies[name])
            cases.append(
                Case(
                    image=str(label if fault[0] and label.exists() else each),
                    labels=() if fault[0] else (LabelFile(str(label), classes, ignored_values),),
                    subject=name if fault[0] else subject(name),
                    name=f"{name}_{channel:04d}" if len(channels) > 1 else name,
                    size=size,
                    ids=() if classes else tuple(names),
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
    _check_any_complete(path, cases, len(channels))
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


def _check_any_complete(path: Path, cases: list[Case], channels: int) -> None:
    """Raises FolderError where there are no cases, or a channel has only faulty ones."""
    if not cases:
        raise FolderError(f"{path} holds no labels in labelsTr/; cases without labels are not read")
    for channel in range(channels):
        of_channel = cases[channel::channels]
        if all(case.fault[0] for case in of_channel):
            raise FolderError(f"{of_channel[0].image}: {' ('.join(of_channel[0].fault)}); this holds for every case")


def _channels(file: Path, spec: dict[str, Any]) -> list[str]:
    names = spec.get("channel_names", spec.get("modality"))
    if not isinstance(names, dict) or not names or sorted(names) != sorted(map(str, range(len(names)))):
        raise FolderError(f'{file}: "channel_names" (or "modality") must be {{"0": "CT", …}}; it is {names!r}')
    return [str(names[str(k)]) for k in range(len(names))]


def _labels(file: Path, spec: dict[str, Any]) -> tuple[dict[int, str], Classes, tuple[int, ...]]:
    """Reads {"1": "liver"}, {"liver": 1} and regions {"organs": [1, 2]}: (id → name, classes, ignored values).

    `classes` is empty where the values of the files are the ids.
    """
    labels = spec.get("labels") or None  # some test sets of the Decathlon have an empty list
    if not isinstance(labels, dict):
        raise FolderError(f'{file}: "labels" must be {{"background": 0, "liver": 1}}; it is {labels!r}')
    if all(str(key).isdecimal() for key in labels):
        labels = {str(name): int(key) for key, name in labels.items()}
    values = {str(name): value if isinstance(value, list) else [value] for name, value in labels.items()}
    for name, ids in values.items():
        if not ids or not all(type(i) is int and i >= 0 for i in ids):
            raise FolderError(f"{file}: label {name!r} is {labels[name]!r}; ids are whole numbers from 0")
    ignored = tuple(values.pop("ignore", ()))
    regions = {name: tuple(ids) for name, ids in values.items() if ids != [0]}
    if not ignored and all(len(ids) == 1 for ids in regions.values()):
        return {ids[0]: name for name, ids in regions.items()}, (), ()
    names = dict(enumerate(regions, 1))
    return names, tuple((i, regions[name]) for i, name in names.items()), ignored


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


def _label_files(path: Path) -> list[Path]:
    """The files that may hold labels; nnU-Net keeps a .json with the spacing beside the .tif of a volume."""
    return [file for file in _files(path / "labelsTr") if may_be_case(file)]
