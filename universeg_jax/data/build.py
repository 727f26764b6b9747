"""Folders → datasets."""

import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from universeg_jax.data import ROLES
from universeg_jax.data.builder import Fleet, build, worker_pool
from universeg_jax.data.dataset import (
    VERSION,
    BuildError,
    BuildReport,
    DatasetMeta,
    read_report,
)
from universeg_jax.data.download import fetch
from universeg_jax.data.source import Source, read_source
from universeg_jax.data.tfds_import import Record, make_record_examples
from universeg_jax.readers.cases import Case, Example, make_examples
from universeg_jax.readers.folder import read_folder
from universeg_jax.readers.meta import Folder
from universeg_jax.readers.volume_files import voxels_of
from universeg_jax.reports.markdown import markdown_table


def build_all(
    wanted: Sequence[tuple[Path, str, str, str]],
    data_dir: str | Path,
    size: int,
    workers: int | Fleet | None = None,
    overwrite: bool = False,
) -> None:
    """Builds every (folder, name, role, source group) of `wanted` and prints a table.

    Leaves what is there already from the same files and options. Raises UserError or OSError; every dataset built
    until then stays.
    """
    done: list[tuple[BuildReport, bool]] = []
    with worker_pool(workers or os.cpu_count() or 1) as pool:
        for each in tqdm(wanted, "build", unit="dataset", leave=False, disable=len(wanted) == 1):
            done.append(build_folder(*each, data_dir, size, pool, overwrite))
    print_reports(done)


def build_sources(
    sources: Sequence[Source],
    path: str | Path | None,
    name: str | None,
    role: str,
    data_dir: str | Path,
    size: int,
    workers: int | Fleet | None = None,
    overwrite: bool = False,
) -> None:
    """Builds public datasets from their publisher's files under `path`, downloaded where that is None, and prints a
    table. Raises UserError, also for a role that a licence does not allow.
    """
    for source in sources:
        if role == "train_open" and not source.open_licence:
            raise BuildError(
                f"{source.name}: its licence ({source.licence}) does not let trained weights be given away; "
                "build it with --role train_research, val or test"
            )
    done: list[tuple[BuildReport, bool]] = []
    with worker_pool(workers or os.cpu_count() or 1) as pool:
        for source in sources:
            contents = read_source(source, path or fetch(source, Path(data_dir) / "downloads"), size)
            options = (name or source.name, role, source.source_group, data_dir, size, pool, overwrite)
            done.append(build_contents(contents, *options))
    print_reports(done)


def build_records(
    contents: Folder,
    name: str,
    role: str,
    source_group: str,
    data_dir: str | Path,
    size: int,
    workers: int | Fleet | None = None,
    overwrite: bool = False,
) -> None:
    """Builds a dataset of the records of another TFDS dataset and prints a table. Raises UserError."""
    options = (name, role, source_group, data_dir, size)
    with worker_pool(workers or os.cpu_count() or 1) as pool:
        done = build_contents(
            contents, *options, pool, overwrite, make=make_record_examples, digest_of_cases=_digest_of_records
        )
    print_reports([done])


def read_collection(path: Path, roles: list[str]) -> list[tuple[Path, str, str, str]]:
    """(folder, name, role, source group) for every dataset that splits.json gives one of these roles.

    splits.json is {"roles": {role: [name, …]}, "source_groups": [[name, …], …]}; a group is called by its members.
    """
    file = path / "splits.json"
    if not file.exists():
        raise BuildError(f'{file} is missing; it gives roles: {{"roles": {{"train_open": ["name", …], "val": […]}}}}')
    try:
        splits = json.loads(file.read_text(encoding="utf-8"))
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
    for what, lists in (("roles", names_of.values()), ("source groups", groups)):
        names = [name for of_one in lists for name in of_one]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise BuildError(f"{file}: {', '.join(twice)} in two {what}; a dataset has one")
    group_of = {name: "+".join(sorted(group)) for group in groups for name in group}
    wanted = [(name, role) for role in ROLES if role in roles for name in names_of.get(role, [])]
    if not wanted:
        raise BuildError(f"{file} has no dataset with role {', '.join(roles)}")
    return [(path / name, name, role, group_of.get(name, "")) for name, role in wanted]


def build_folder(
    path: Path,
    name: str,
    role: str,
    source_group: str,
    data_dir: str | Path,
    size: int,
    workers: int | Executor | Fleet | None = 1,
    overwrite: bool = False,
) -> tuple[BuildReport, bool]:
    """Builds one folder unless the dataset is there from the same files and options; (its report, whether built)."""
    return build_contents(read_folder(path, size), name, role, source_group, data_dir, size, workers, overwrite)


def build_contents(
    contents: Folder,
    name: str,
    role: str,
    source_group: str,
    data_dir: str | Path,
    size: int,
    workers: int | Executor | Fleet | None = 1,
    overwrite: bool = False,
    make: Callable[[Any], list[Example]] = make_examples,
    digest_of_cases: Callable[[Sequence[Any]], bytes] | None = None,
) -> tuple[BuildReport, bool]:
    """As `build_folder`, of cases that were read already; `make` gives the examples of one."""
    meta = DatasetMeta(
        name=name,
        role=role,
        labels=contents.labels,
        size=size,
        source_group=source_group,
        modality=contents.modality,
        licence=contents.licence,
        citation=contents.citation,
        subjects_identifiable=contents.subjects_identifiable,
    )
    of_cases = (digest_of_cases or _digest_of_cases)(contents.cases)
    # Of all that the records depend on: the format, the options, names and contents of the files.
    digest = hashlib.sha256(repr((VERSION, meta, contents.ignored)).encode() + of_cases).hexdigest()
    report = read_report(data_dir, name)
    if report and report.input_digest == digest and not overwrite:
        return report, False
    return build(meta, contents.cases, make, data_dir, workers, digest, contents.ignored), True


def _digest_of_cases(cases: Sequence[Case]) -> bytes:
    """sha256 of names and contents of the files of all cases, and of how they are read."""
    digest = hashlib.sha256()
    digest_of = functools.lru_cache(maxsize=64)(_digest_of)  # channels of a volume, one after another, share files
    for case in cases:
        options = [(file.classes, file.ignored) for file in case.labels]
        how = (case.name, case.subject, case.modality, case.subset, case.channel, case.axes, case.window, case.fault)
        digest.update(repr((*how, options)).encode())
        for path in (case.image, *(file.path for file in case.labels)):
            digest.update(digest_of(path))
    return digest.digest()


def _digest_of_records(cases: Sequence[Record]) -> bytes:
    """sha256 of the files of their dataset, and of how they are read."""
    digest = hashlib.sha256()
    for case in cases[:1]:  # all others are of the same files and read in the same way
        digest.update(repr((case.image, case.mask, case.subject)).encode() + _digest_of(case.directory))
    return digest.digest()


def _digest_of(path: str) -> bytes:
    """sha256 of a file, with that of its voxels where it is a header alone, or of the files of a folder."""
    digest = hashlib.sha256(Path(path).name.encode() + b"\0")
    for file in sorted(Path(path).iterdir()) if Path(path).is_dir() else [Path(path), voxels_of(path)]:
        if file and file.is_file():
            with file.open("rb") as opened:
                digest.update(file.name.encode() + b"\0" + hashlib.file_digest(opened, "sha256").digest())
    return digest.digest()


def print_reports(done: list[tuple[BuildReport, bool]]) -> None:
    columns = ["dataset", "role", "images", "subjects", "labels", "dropped", ""]
    rows = [
        [r.dataset, r.role, r.examples, r.subjects, r.labels, len(r.dropped), "built" if built else "as it was"]
        for r, built in done
    ]
    print(markdown_table(columns, rows))
    for report, _ in done:
        for problem, count in report.dropped_by_problem.items():
            cases = [case for case, message in report.dropped.items() if (message + " (").startswith(problem + " (")]
            print(f"{report.dataset}: dropped {count}: {problem}: {_some(cases)}", file=sys.stderr)
        if report.ignored:
            print(f"{report.dataset}: passed over: {_some(report.ignored)}", file=sys.stderr)
        if report.labels_never_seen:
            never = [f"{i} ({name})" for i, name in report.labels_never_seen.items()]
            print(f"{report.dataset}: labels that never occur: {_some(never)}", file=sys.stderr)


def _some(things: Sequence[str], most: int = 5) -> str:
    return ", ".join(things[:most]) + (f" and {len(things) - most} more" if len(things) > most else "")
