"""nnU-Net and Medical Segmentation Decathlon folders, recognised by their dataset.json.

    dataset.json                    channel_names or modality, labels; of the Decathlon also the list "training"
    imagesTr/<case>_0000.nii.gz     nnU-Net: a file a channel;      imagesTr/<case>.nii.gz    Decathlon: channels in it
    labelsTr/<case>.nii.gz

Each channel is a modality of its own. A case is its own subject unless meta.json says otherwise: of names such as
"liver_12" the part before the "_" is no patient. Regions of nnU-Net, [1, 2, 3], are labels that may overlap; its label
"ignore" is none. Images without labels, imagesTs among them, are not read. A label without its image, and a case that
is listed and not there, are cases at fault: dropped and counted, unless it is so with all.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from universeg_jax.readers.cases import Case, FolderError, LabelFile, may_be_case
from universeg_jax.readers.file_names import extension, natural_order, stem
from universeg_jax.readers.meta import Folder, read_json_object, read_meta, subject_rule
from universeg_jax.readers.volume_files import is_volume


def is_dataset_json(path: Path) -> bool:
    """Whether a folder has the layout of nnU-Net or of the Decathlon."""
    return (path / "dataset.json").is_file() and (path / "imagesTr").is_dir()


def read_dataset_json(path: Path, size: int) -> Folder:
    """The cases of such a folder, in natural order. Raises FolderError."""
    file = path / "dataset.json"
    spec, meta = read_json_object(file), read_meta(path)
    channels = _channels(file, spec)
    labels, of_label = _labels(file, spec)
    names = {**labels, **meta.labels}
    subject = subject_rule(path, meta, lambda name: name)
    listed = _listed(path, spec)
    pairs = listed or _found(path)
    copies = Counter() if listed else Counter(stem(file) for file in _label_files(path))
    cases, used = [], set()
    for name, (image, label) in pairs.items():
        images = [image] * len(channels) if image else _channel_files(path, name, label, len(channels))
        several = image is not None and len(channels) > 1
        for channel, (each, modality) in enumerate(zip(images, channels, strict=True)):
            fault = _fault(each, label, copies[name])
            cases.append(
                Case(
                    image=str(label if fault[0] and label.exists() else each),
                    labels=() if fault[0] else (LabelFile(str(label), *of_label),),
                    subject=name if fault[0] else subject(name),
                    name=f"{name}_{channel:04d}" if len(channels) > 1 else name,
                    size=size,
                    ids=() if of_label else tuple(names),
                    modality=modality if not meta.modality else f"{meta.modality} {modality}",
                    volume=is_volume(each),
                    channel=channel if several else None,
                    axes=meta.axes,
                    window=meta.window,
                    root=str(path),
                    fault=fault,
                )
            )
        used |= {label, *images}
    if not cases:
        raise FolderError(f"{path} holds no labels in labelsTr/; cases without labels are not read")
    for modality in range(len(channels)):
        of_channel = cases[modality :: len(channels)]
        if all(case.fault[0] for case in of_channel):
            raise FolderError(f"{of_channel[0].image}: {' ('.join(of_channel[0].fault)}); so it is with every case")
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


def _channels(file: Path, spec: dict[str, Any]) -> list[str]:
    names = spec.get("channel_names", spec.get("modality"))
    if not isinstance(names, dict) or not names or sorted(names) != sorted(map(str, range(len(names)))):
        raise FolderError(f'{file}: "channel_names" (or "modality") must be {{"0": "CT", …}}; it is {names!r}')
    return [str(names[str(k)]) for k in range(len(names))]


def _labels(file: Path, spec: dict[str, Any]) -> tuple[dict[int, str], tuple]:
    """(id → name, arguments for LabelFile): of {"1": "liver"}, {"liver": 1} and of regions {"organs": [1, 2]}."""
    read = spec.get("labels")
    if isinstance(read, list) and not read:  # so some of the Decathlon's test sets
        read = None
    if not isinstance(read, dict) or not read:
        raise FolderError(f'{file}: "labels" must be {{"background": 0, "liver": 1}}; it is {read!r}')
    if all(str(key).isdecimal() for key in read):
        read = {str(name): int(key) for key, name in read.items()}
    values = {}
    for name, value in read.items():
        values[str(name)] = value if isinstance(value, list) else [value]
        if not values[str(name)] or not all(type(v) is int and v >= 0 for v in values[str(name)]):
            raise FolderError(f"{file}: label {name!r} is {value!r}; ids are whole numbers from 0")
    ignored = tuple(values.pop("ignore", ()))
    classes = {name: tuple(v) for name, v in values.items() if v != [0]}
    if not ignored and all(len(v) == 1 for v in classes.values()):
        return {v[0]: name for name, v in classes.items()}, ()
    ids = dict(enumerate(classes, 1))
    return ids, (tuple((i, classes[name]) for i, name in ids.items()), ignored)


def _listed(path: Path, spec: dict[str, Any]) -> dict[str, tuple[Path | None, Path]]:
    """Case → (image, label) of the Decathlon's list; the image is None where it lies in a file a channel."""
    entries = spec.get("training") or []
    pairs = {}
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


def _found(path: Path) -> dict[str, tuple[None, Path]]:
    return {stem(file): (None, file) for file in _label_files(path)}


def _channel_files(path: Path, name: str, label: Path, count: int) -> list[Path]:
    """imagesTr/<case>_0000… for every channel; in whatever type, where it is not the label's. Some may not exist."""
    files = []
    for channel in range(count):
        wanted = path / "imagesTr" / f"{name}_{channel:04d}{extension(label)}"
        if not wanted.exists():
            there = filter(may_be_case, sorted(wanted.parent.glob(f"{_escaped(name)}_{channel:04d}.*")))
            wanted = next(there, wanted)
        files.append(wanted)
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
    """Those that may hold labels: beside the .tif of a volume nnU-Net keeps a .json with its spacing."""
    return [file for file in _files(path / "labelsTr") if may_be_case(file)]
