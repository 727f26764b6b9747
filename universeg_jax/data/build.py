"""Building datasets of folders, public sources and TFDS datasets, unless they are there from the same input."""

import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from universeg_jax.data import ROLES
from universeg_jax.data.builder import Workers, build, worker_pool
from universeg_jax.data.dataset import VERSION, BuildError, BuildReport, DatasetMeta, read_report
from universeg_jax.data.download import fetch
from universeg_jax.data.source import Source, read_source
from universeg_jax.data.tfds_import import TfdsCase, make_tfds_examples
from universeg_jax.readers.cases import Case, Example, make_examples
from universeg_jax.readers.folder import read_folder
from universeg_jax.readers.meta import Folder, decode_text
from universeg_jax.readers.volume_files import voxels_of
from universeg_jax.reports.markdown import markdown_table


@dataclass(frozen=True)
class Target:
    """The dataset to build."""

    name: str
    role: str  # one of ROLES
    source_group: str = ""  # shared with datasets of the same patients


@dataclass(frozen=True)
class BuildOptions:
    """Options that all datasets of one command share."""

    data_dir: str | Path
    size: int = 128  # pixels
    workers: Workers | None = None  # None = one process per core
    overwrite: bool = False  # build again what is there from the same input


def build_folders(wanted: Sequence[tuple[Path, Target]], options: BuildOptions) -> None:
    """Builds a dataset of every folder and prints a table.

    Raises UserError or OSError; datasets built before the error stay.
    """
    with _shared_workers(options) as options:
        folders = tqdm(wanted, "build", unit="dataset", leave=False, disable=len(wanted) == 1)
        done = [build_contents(read_folder(path, options.size), target, options) for path, target in folders]
    print_reports(done)


def build_sources(
    sources: Sequence[Source], path: str | Path | None, name: str | None, role: str, options: BuildOptions
) -> None:
    """Builds public datasets from their publisher's files and prints a table.

    The files lie under `path`, or are downloaded where that is None. Raises UserError, also for a role that a licence
    does not allow.
    """
    for source in sources:
        if role == "train_open" and not source.open_licence:
            raise BuildError(
                f"{source.name}: its licence ({source.licence}) does not let trained weights be given away; "
                "build it with --role train_research, val or test"
            )
    done = []
    with _shared_workers(options) as options:
        for source in sources:
            files = path or fetch(source, Path(options.data_dir) / "downloads")
            target = Target(name or source.name, role, source.source_group)
            done.append(build_contents(read_source(source, files, options.size), target, options))
    print_reports(done)


def build_tfds(contents: Folder[TfdsCase], target: Target, options: BuildOptions) -> None:
    """Builds a dataset of the records of another TFDS dataset and prints a table. Raises UserError."""
    with _shared_workers(options) as options:
        done = build_contents(contents, target, options, make_tfds_examples, _digest_of_tfds_cases)
    print_reports([done])


@contextmanager
def _shared_workers(options: BuildOptions) -> Iterator[BuildOptions]:
    with worker_pool(_workers(options)) as workers:
        yield replace(options, workers=workers)


def _workers(options: BuildOptions) -> Workers:
    return (os.cpu_count() or 1) if options.workers is None else options.workers


def read_collection(path: Path, roles: list[str]) -> list[tuple[Path, Target]]:
    """Reads splits.json of a folder of folders: every folder that it gives one of these roles.

    splits.json is {"roles": {role: [name, …]}, "source_groups": [[name, …], …]}; a group is named after its members.
    """
    file = path / "splits.json"
    if not file.exists():
        raise BuildError(f'{file} is missing; it gives roles: {{"roles": {{"train_open": ["name", …], "val": […]}}}}')
    try:
        splits = json.loads(decode_text(file.read_bytes()))
        names_of = {role: [str(name) for name in names] for role, names in splits["roles"].items()}
        groups = [[str(name) for name in group] for group in splits.get("source_groups", [])]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BuildError(
            f'{file} must be {{"roles": {{role: [name, …]}}, "source_groups": [[name, …], …]}} in JSON; '
            f"it is not: {type(error).__name__} {error}"
        ) from error
    unknown = (set(roles) | names_of.keys()) - set(ROLES)
    if unknown:
        raise BuildError(f"{file}: roles {sorted(unknown)}; there are {', '.join(ROLES)}")
    for kind, lists in (("roles", names_of.values()), ("source groups", groups)):
        names = [name for members in lists for name in members]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise BuildError(f"{file}: {', '.join(twice)} in two {kind}; a dataset has one")
    group_of = {name: "+".join(sorted(group)) for group in groups for name in group}
    wanted = [(name, role) for role in ROLES if role in roles for name in names_of.get(role, [])]
    if not wanted:
        raise BuildError(f"{file} has no dataset with role {', '.join(roles)}")
    return [(path / name, Target(name, role, group_of.get(name, ""))) for name, role in wanted]


def build_contents(
    contents: Folder,
    target: Target,
    options: BuildOptions,
    make: Callable[[Any], list[Example]] = make_examples,
    digest_of_cases: Callable[[Sequence[Any]], bytes] | None = None,
) -> tuple[BuildReport, bool]:
    """Builds one dataset of cases unless it is there from the same input: (its report, True if it was built).

    `make` makes the examples of a case.
    """
    meta = DatasetMeta(
        name=target.name,
        role=target.role,
        labels=contents.labels,
        size=options.size,
        source_group=target.source_group,
        modality=contents.modality,
        licence=contents.licence,
        citation=contents.citation,
        subjects_identifiable=contents.subjects_identifiable,
    )
    # The input is all that the records depend on: the format, the options, names and contents of the files.
    of_cases = (digest_of_cases or _digest_of_cases)(contents.cases)
    digest = hashlib.sha256(repr((VERSION, meta, contents.ignored)).encode() + of_cases).hexdigest()
    report = read_report(options.data_dir, target.name)
    if report and report.input_digest == digest and not options.overwrite:
        return report, False
    report = build(
        meta, contents.cases, make, options.data_dir, _workers(options), digest, contents.ignored, contents.notes
    )
    return report, True


def _digest_of_cases(cases: Sequence[Case]) -> bytes:
    """sha256 of names and contents of the files of all cases, and of how they are read."""
    digest = hashlib.sha256()
    digest_of = functools.lru_cache(maxsize=64)(_digest_of)  # channels of a volume, one after another, share files
    for case in cases:
        classes = [(file.classes, file.ignored, file.part, file.colours) for file in case.labels]
        fields = (case.name, case.subject, case.modality, case.subset, case.channel, case.axes, case.window, case.fault)
        digest.update(repr((*fields, classes)).encode())
        for path in (case.image, *(file.path for file in case.labels)):
            digest.update(digest_of(path))
    return digest.digest()


def _digest_of_tfds_cases(cases: Sequence[TfdsCase]) -> bytes:
    """sha256 of the files of their dataset, and of how they are read."""
    digest = hashlib.sha256()
    for case in cases[:1]:  # all others are in the same files and read in the same way
        features = case.features
        digest.update(repr((features.image, features.mask, features.subject)).encode() + _digest_of(case.directory))
    return digest.digest()


def _digest_of(path: str) -> bytes:
    """sha256 of a file, with that of its voxels where it is only a header, or of the files of a folder."""
    digest = hashlib.sha256(Path(path).name.encode() + b"\0")
    for file in sorted(Path(path).rglob("*")) if Path(path).is_dir() else [Path(path), voxels_of(path)]:
        if file and file.is_file():
            with file.open("rb") as opened:
                digest.update(file.name.encode() + b"\0" + hashlib.file_digest(opened, "sha256").digest())
    return digest.digest()


def print_reports(done: Sequence[tuple[BuildReport, bool]]) -> None:
    """Prints a table of (report, True if built) and, to stderr, what was dropped or skipped."""
    columns = ["dataset", "role", "images", "subjects", "labels", "dropped", ""]
    rows = [
        [r.dataset, r.role, r.examples, r.subjects, r.labels, len(r.dropped), "built" if built else "as it was"]
        for r, built in done
    ]
    print(markdown_table(columns, rows))
    for report, _ in done:
        for problem, count in report.dropped_by_problem.items():
            cases = [case for case, message in report.dropped.items() if (message + " (").startswith(problem + " (")]
            print(f"{report.dataset}: dropped {count}: {problem}: {_first(cases)}", file=sys.stderr)
        for line in report.notes:
            print(f"{report.dataset}: {line}", file=sys.stderr)
        if report.ignored:
            print(f"{report.dataset}: skipped: {_first(report.ignored)}", file=sys.stderr)
        if report.labels_never_seen:
            never = [f"{i} ({name})" for i, name in report.labels_never_seen.items()]
            print(f"{report.dataset}: labels that never occur: {_first(never)}", file=sys.stderr)


def _first(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
