"""`universeg build`: folders → datasets."""

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from universeg_jax.data import folder
from universeg_jax.data.builder import ROLES, VERSION, BuildError, DatasetMeta, build, list_datasets, read_report
from universeg_jax.reporting import markdown_table

EXAMPLE = "universeg build --folder my_scans --name my_scans --data_dir data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--folder", help="a folder with images/, labels/ and perhaps meta.json")
    what.add_argument("--collection", help="a folder of such folders with a splits.json that gives each a role")
    parser.add_argument("--name", help="the dataset's name (with --folder); default: the folder's")
    parser.add_argument("--data_dir", default="data", help="where datasets are built (default: %(default)s)")
    parser.add_argument("--role", default="test", choices=ROLES, help="with --folder (default: %(default)s)")
    parser.add_argument("--source_group", default="", help="with --folder: datasets that share patients share this")
    parser.add_argument("--roles", default=",".join(ROLES), help="with --collection: which to build, comma-separated")
    parser.add_argument("--size", type=int, default=128, help="pixels a side (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Builds what is asked for, skipping what is there already from the same input; prints a table."""
    if args.folder:
        name = args.name or Path(args.folder).resolve().name
        wanted = [(Path(args.folder), name, args.role, args.source_group)]
    else:
        wanted = read_collection(Path(args.collection), args.roles.split(","))
    reports = [build_folder(*each, args.data_dir, args.size, args.workers) for each in wanted]
    print_reports(reports)
    return 0


def read_collection(path: Path, roles: list[str]) -> list[tuple[Path, str, str, str]]:
    """(folder, name, role, source group) for every dataset that splits.json gives one of these roles."""
    file = path / "splits.json"
    if not file.exists():
        raise BuildError(f'{file} is missing; it gives roles: {{"roles": {{"train_open": ["name", …], "val": […]}}}}')
    splits = json.loads(file.read_text())
    unknown = (set(roles) | set(splits["roles"])) - set(ROLES)
    if unknown:
        raise BuildError(f"{file}: roles {sorted(unknown)}; there are {', '.join(ROLES)}")
    groups = {name: "+".join(sorted(group)) for group in splits.get("source_groups", []) for name in group}
    names = [(name, role) for role in ROLES if role in roles for name in splits["roles"].get(role, [])]
    return [(path / name, name, role, groups.get(name, "")) for name, role in names]


def build_folder(
    path: Path, name: str, role: str, source_group: str, data_dir: str | Path, size: int, workers: int
) -> dict[str, Any]:
    """Builds one folder unless the dataset is there from the same files and options; returns its report."""
    contents = folder.read_folder(path, size)
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
    digest = _digest([meta, VERSION], contents.cases)
    if name in list_datasets(data_dir) and read_report(data_dir, name)["input_digest"] == digest:
        return {**read_report(data_dir, name), "skipped": True}
    return build(meta, contents.cases, folder.make_examples, data_dir, workers, digest)


def _digest(options: list[Any], cases: tuple[folder.Case, ...]) -> str:
    digest = hashlib.sha256(repr(options).encode())
    for case in cases:
        for file in (case.image, case.label):
            digest.update(Path(file).name.encode() + b"\0")
            digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def print_reports(reports: list[dict[str, Any]]) -> None:
    rows = [
        [
            r["dataset"],
            r["role"],
            r["examples"],
            r["subjects"],
            len(r["dropped"]),
            "as it was" if "skipped" in r else "built",
        ]
        for r in reports
    ]
    print(markdown_table(["dataset", "role", "images", "subjects", "dropped", ""], rows))
    for report in reports:
        for case, reason in report["dropped"].items():
            print(f"{report['dataset']}: dropped {case}: {reason}", file=sys.stderr)
        if report["labels_never_seen"]:
            print(f"{report['dataset']}: labels that never occur: {report['labels_never_seen']}", file=sys.stderr)
