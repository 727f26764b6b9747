"""Public datasets in the layout of their publishers: the form of a description in sources/, and how it is read.

A `FilePattern` matches images by their path, "database/{subject}/{subject}_frame{frame}.nii.gz": {name} matches any
characters but "/", {name:regex} what the regular expression matches, and a repeated name the same characters again. A
pattern that ends in "/" is a folder of DICOM files. The label's pattern uses the same names, and "*" for any characters
but "/": all matching files are united. The layout may lie in any inner folder of the given path.

The subject is the match of {subject}, or of {case} where a publisher does not identify subjects.
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

Listing = dict[str, list[str]]  # folder → names in it, as `_walk` makes it


class SourceError(UserError):
    """An unknown source, or files that are not in its layout."""


@dataclass(frozen=True)
class FilePattern:
    """The paths of images of one kind and of their labels."""

    image: str
    label: str | dict[int, str]  # one pattern for maps of ids, or a pattern of binary masks for each id
    modality: str = ""  # "" = the source's
    subset: str = ""
    channel: int | None = None  # of files with several
    values: tuple[tuple[int, tuple[int, ...]], ...] = ()  # id → values of the file, where they are not the ids
    ignored: tuple[int, ...] = ()  # values of the file that are no class


@dataclass(frozen=True)
class Download:
    """A file that anybody may download. `checksum` is "sha256:…" or "md5:…"."""

    url: str
    checksum: str


@dataclass(frozen=True)
class Source:
    """The description of a public dataset."""

    name: str
    title: str
    modality: str
    labels: dict[int, str]
    patterns: tuple[FilePattern, ...]
    licence: str
    citation: str
    page: str  # of the publisher, with a description and the files
    axes: tuple[int, ...] = ()  # as in Case
    source_group: str = ""  # shared with sources of the same patients
    subjects_identifiable: bool = True
    open_licence: bool = False  # weights trained on it may be given away
    downloads: tuple[Download, ...] = ()
    verified: bool = False  # built from the publisher's own files; else the layout is that of its documentation


def all_sources() -> dict[str, Source]:
    """Name → source, sorted; every module of sources/ lists its own in SOURCES."""
    from universeg_jax.data import sources

    names = sorted(module.name for module in pkgutil.iter_modules(sources.__path__))
    modules = [importlib.import_module(f"{sources.__name__}.{name}") for name in names]
    listed = [source for module in modules for source in module.SOURCES]
    return {source.name: source for source in sorted(listed, key=lambda source: source.name)}


def find_sources(name: str) -> list[Source]:
    """The source of a name, or all of a family: "wbc" is wbc_cellavision and wbc_jtsc. Raises SourceError."""
    known = all_sources()
    matching = [known[name]] if name in known else [s for s in known.values() if s.name.startswith(f"{name}_")]
    if not matching:
        raise SourceError(f"no source {name!r}; `universeg build --list` shows all {len(known)}")
    return matching


def source_line(source: Source) -> str:
    """One line of `universeg build --list`."""
    mark = "verified" if source.verified else "unverified"
    labels = ", ".join(list(source.labels.values())[:4]) + (" …" if len(source.labels) > 4 else "")
    words = [f"{len(source.labels)} labels ({labels})" if len(source.labels) > 1 else f"1 label ({labels})"]
    words += [source.licence, "can be downloaded" if source.downloads else "", source.page]
    return (
        f"{source.name:24} {mark:10} {source.modality} | {source.title} | {' | '.join(word for word in words if word)}"
    )


def read_source(source: Source, path: str | Path, size: int) -> Folder[Case]:
    """Reads the cases of a source whose files lie under a folder. Raises SourceError where there are none."""
    root = Path(path)
    if not root.is_dir():
        raise SourceError(f"{root} is no folder; give the one with the files of {source.page}")
    listing = _walk(root)
    cases, unlabelled = [], []
    for pattern in source.patterns:
        for image, fields in _matches(pattern.image, listing):
            labels = _label_files(source, pattern, root, listing, fields)
            if labels:
                cases.append(_case(source, pattern, root, image, fields, labels, size))
            else:
                unlabelled.append(image)
    if not cases:
        paths = " or ".join(pattern.image for pattern in source.patterns[:3])
        note = f" ({len(unlabelled)} images without labels)" if unlabelled else ""
        raise SourceError(f"{root} has no files of {source.name}: {paths} with labels{note}; see {source.page}")
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


def _walk(root: Path) -> Listing:
    """Lists the names in each folder, sorted, inner folders with a final "/", without hidden ones."""
    listing = {}
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith((".", "__MACOSX")))
        visible = [name for name in names if not name.startswith(".")]
        relative = Path(folder).relative_to(root).as_posix()
        listing["" if relative == "." else f"{relative}/"] = sorted([*visible, *(f"{name}/" for name in inner)])
    return listing


def _matches(pattern: str, listing: Listing) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields (path, match of each name) for all matching files."""
    compiled = re.compile("(?P<_inside>(?:.*/)?)" + _regex(pattern))
    for folder, names in listing.items():
        for name in names:
            if match := compiled.fullmatch(folder + name):
                yield folder + name, match.groupdict()


def _regex(pattern: str) -> str:
    pieces, seen = [], set()
    for text, name, regex in re.findall(r"([^{]*)(?:\{(\w+)(?::((?:[^{}]|\{\d+\})+))?\})?", pattern):
        pieces.append(re.escape(text))
        if name:
            pieces.append(f"(?P={name})" if name in seen else f"(?P<{name}>{regex or '[^/]+?'})")
            seen.add(name)
    return "".join(pieces)


def _label_files(
    source: Source, pattern: FilePattern, root: Path, listing: Listing, fields: dict[str, str]
) -> tuple[LabelFile, ...]:
    """The existing label files of an image."""
    if isinstance(pattern.label, str):
        classes = pattern.values or tuple((i, (i,)) for i in source.labels)
        paths = _existing(pattern.label, listing, fields)
        return tuple(LabelFile(str(root / path), classes, pattern.ignored) for path in paths)
    return tuple(
        LabelFile(str(root / path), ((i, ()),))
        for i, label in pattern.label.items()
        for path in _existing(label, listing, fields)
    )


def _existing(pattern: str, listing: Listing, fields: dict[str, str]) -> list[str]:
    """The files that match a label's pattern with the names filled in."""
    path = fields["_inside"] + re.sub(r"\{(\w+)\}", lambda match: fields[match[1]], pattern)
    folder, _, name = path.removesuffix("/").rpartition("/")
    folder, name = f"{folder}/" if folder else "", name + ("/" if path.endswith("/") else "")
    names = listing.get(folder, [])
    if "*" not in name:
        return [folder + name] if name in names else []
    compiled = re.compile("[^/]*".join(map(re.escape, name.split("*"))))
    return [folder + each for each in names if compiled.fullmatch(each)]


def _case(
    source: Source,
    pattern: FilePattern,
    root: Path,
    image: str,
    fields: dict[str, str],
    labels: tuple[LabelFile, ...],
    size: int,
) -> Case:
    inside = image.removeprefix(fields["_inside"])
    is_series = image.endswith("/")
    name = inside.rstrip("/") if is_series else inside[: len(inside) - len(extension(inside))]
    return Case(
        image=str(root / image),
        labels=labels,
        subject=fields.get("subject") or fields["case"],
        name=name if pattern.channel is None else f"{name}:{pattern.channel}",
        size=size,
        modality=pattern.modality or source.modality,
        subset=pattern.subset,
        volume=is_series or extension(image) in VOLUME_EXTENSIONS,
        channel=pattern.channel,
        axes=source.axes,
        root=str(root),
    )
