"""Public datasets in the layout of their publishers, described in sources/, and how such a description is read.

A `Part` finds images by a pattern of their path, "database/{subject}/{subject}_frame{frame}.nii.gz": {name} stands for
any characters but "/", {name:regex} for what the regular expression says, and the same name for the same characters. A
pattern that ends in "/" is a folder of DICOM files. The label's pattern uses the same names, and "*" for any characters
but "/": the union of all files that fit. The layout may lie in any inner folder of the path that is given.

The subject is what {subject} stands for, or {case} where a publisher does not say who is who.
"""

import importlib
import os
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from universeg_jax.errors import UserError
from universeg_jax.readers.cases import Case
from universeg_jax.readers.file_names import VOLUME_EXTENSIONS, extension, natural_order
from universeg_jax.readers.labels import LabelFile
from universeg_jax.readers.meta import Folder

Labels = str | dict[int, str]  # one pattern for a map of ids, or a pattern of binary masks for each id


class SourceError(UserError):
    """A source that is not known, or files that are not in its layout."""


@dataclass(frozen=True)
class Part:
    """Images of one kind and where their labels are."""

    image: str
    label: Labels
    modality: str = ""  # "" = the source's
    subset: str = ""
    channel: int | None = None  # of files with several
    values: tuple[tuple[int, tuple[int, ...]], ...] = ()  # id → values of the file, where they are not the ids
    ignored: tuple[int, ...] = ()  # values of the file that are no class


@dataclass(frozen=True)
class Download:
    """A file that its publisher lets everybody fetch. `checksum` is "sha256:…" or "md5:…"."""

    url: str
    checksum: str


@dataclass(frozen=True)
class Source:
    """All that is known of a public dataset."""

    name: str
    title: str
    modality: str
    labels: dict[int, str]
    parts: tuple[Part, ...]
    licence: str
    citation: str
    page: str  # where its publisher describes and gives it
    axes: tuple[int, ...] = ()  # as in Case
    window: str | tuple[float, float] = "auto"
    source_group: str = ""  # shared with sources of the same patients
    subjects_identifiable: bool = True
    open_licence: bool = False  # lets weights that were trained on it be given away
    downloads: tuple[Download, ...] = ()
    verified: bool = False  # built from the publisher's own files; else the layout is that of its documentation


def all_sources() -> dict[str, Source]:
    """Name → source, sorted; every module of sources/ lists its own in SOURCES."""
    from universeg_jax.data import sources

    names = sorted(module.name for module in pkgutil.iter_modules(sources.__path__))
    modules = [importlib.import_module(f"{sources.__name__}.{name}") for name in names]
    found = [source for module in modules for source in module.SOURCES]
    return {source.name: source for source in sorted(found, key=lambda source: source.name)}


def find_sources(name: str) -> list[Source]:
    """The source of a name, or all of a family: "wbc" is wbc_cellavision and wbc_jtsc. Raises SourceError."""
    known = all_sources()
    found = [known[name]] if name in known else [s for s in known.values() if s.name.startswith(f"{name}_")]
    if not found:
        raise SourceError(f"no source {name!r}; `universeg build --list` shows all {len(known)}")
    return found


def list_line(source: Source) -> str:
    """One line of `universeg build --list`."""
    mark = "verified" if source.verified else "unverified"
    labels = ", ".join(list(source.labels.values())[:4]) + (" …" if len(source.labels) > 4 else "")
    words = [f"{len(source.labels)} labels ({labels})" if len(source.labels) > 1 else f"1 label ({labels})"]
    words += [source.licence, "can be downloaded" if source.downloads else "", source.page]
    return (
        f"{source.name:24} {mark:10} {source.modality} | {source.title} | {' | '.join(word for word in words if word)}"
    )


def read_source(source: Source, path: str | Path, size: int) -> Folder:
    """The cases of a source whose files lie under a folder. Raises SourceError where none are there."""
    root = Path(path)
    if not root.is_dir():
        raise SourceError(f"{root} is no folder; give the one with the files of {source.page}")
    files = _walk(root)
    cases, unlabelled = [], []
    for part in source.parts:
        for image, fields in _matches(part.image, files):
            labels = _label_files(source, part, root, files, fields)
            if labels:
                cases.append(_case(source, part, root, image, fields, labels, size))
            else:
                unlabelled.append(image)
    if not cases:
        patterns = " or ".join(part.image for part in source.parts[:3])
        labels = f" ({len(unlabelled)} images without labels)" if unlabelled else ""
        raise SourceError(f"{root} has no files of {source.name}: {patterns} with labels{labels}; see {source.page}")
    if len({case.name for case in cases}) < len(cases):
        twice = next(case.name for i, case in enumerate(cases) if case.name in {c.name for c in cases[:i]})
        raise SourceError(f"{root} holds {source.name} twice, {twice} among others; give the folder of one copy")
    order = {name: i for i, name in enumerate(natural_order(case.name for case in cases))}
    return Folder(
        tuple(sorted(cases, key=lambda case: order[case.name])),
        labels=dict(source.labels),
        modality=source.modality,
        licence=source.licence,
        citation=source.citation,
        subjects_identifiable=source.subjects_identifiable,
        ignored=tuple(f"{image} (has no label)" for image in natural_order(unlabelled)),
    )


def _walk(root: Path) -> dict[str, list[str]]:
    """Folder → its names, folders with a "/" at their end; relative to the root, sorted, hidden ones left out."""
    found = {}
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith((".", "__MACOSX")))
        shown = [name for name in names if not name.startswith(".")]
        at = Path(folder).relative_to(root).as_posix()
        found["" if at == "." else f"{at}/"] = sorted([*shown, *(f"{name}/" for name in inner)])
    return found


def _matches(pattern: str, files: dict[str, list[str]]) -> Iterator[tuple[str, dict[str, str]]]:
    """(path, what the names stand for) of all files that fit."""
    compiled = re.compile("(?P<_inside>(?:.*/)?)" + _regex(pattern))
    for folder, names in files.items():
        for name in names:
            if found := compiled.fullmatch(folder + name):
                yield folder + name, found.groupdict()


def _regex(pattern: str) -> str:
    parts, seen = [], set()
    for text, name, how in re.findall(r"([^{]*)(?:\{(\w+)(?::((?:[^{}]|\{\d+\})+))?\})?", pattern):
        parts.append(re.escape(text))
        if name:
            parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>{how or '[^/]+?'})")
            seen.add(name)
    return "".join(parts)


def _fill(pattern: str, fields: dict[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: fields[found[1]], pattern)


def _label_files(
    source: Source, part: Part, root: Path, files: dict[str, list[str]], fields: dict[str, str]
) -> tuple[LabelFile, ...]:
    """Those that exist of an image."""
    if isinstance(part.label, str):
        classes = part.values or tuple((i, (i,)) for i in source.labels)
        found = _existing(part.label, files, fields)
        return tuple(LabelFile(str(root / path), classes, part.ignored) for path in found)
    return tuple(
        LabelFile(str(root / path), ((i, ()),))
        for i, pattern in part.label.items()
        for path in _existing(pattern, files, fields)
    )


def _existing(pattern: str, files: dict[str, list[str]], fields: dict[str, str]) -> list[str]:
    path = fields["_inside"] + _fill(pattern, fields)
    folder, _, name = path.removesuffix("/").rpartition("/")
    folder, name = f"{folder}/" if folder else "", name + ("/" if path.endswith("/") else "")
    names = files.get(folder, [])
    if "*" not in name:
        return [folder + name] if name in names else []
    compiled = re.compile("[^/]*".join(map(re.escape, name.split("*"))))
    return [folder + each for each in names if compiled.fullmatch(each)]


def _case(
    source: Source, part: Part, root: Path, image: str, fields: dict[str, str], labels: tuple[LabelFile, ...], size: int
) -> Case:
    inside = image.removeprefix(fields["_inside"])
    is_folder = image.endswith("/")
    name = inside.rstrip("/") if is_folder else inside[: len(inside) - len(extension(inside))]
    return Case(
        image=str(root / image),
        labels=labels,
        subject=fields.get("subject") or fields["case"],
        name=name if part.channel is None else f"{name}:{part.channel}",
        size=size,
        modality=part.modality or source.modality,
        subset=part.subset,
        volume=is_folder or extension(image) in VOLUME_EXTENSIONS,
        channel=part.channel,
        axes=source.axes,
        window=source.window,
        root=str(root),
    )
