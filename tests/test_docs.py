"""What the pages name is there: links, files, commands with their flags, fields of configs."""

import argparse
import importlib
import re
from pathlib import Path

import pytest

from universeg_jax.cli import make_parser
from universeg_jax.configuration import flatten, to_dict

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page: re.sub(r"\\\n\s*", " ", page.read_text()) for page in PAGES}  # a command is one line
EVERYWHERE = "\n".join(TEXTS.values())
COMMANDS = next(a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices


def commands(start: str) -> list[str]:
    """What is typed after `start`, in blocks and between backticks, up to a comment or a pipe."""
    found = re.findall(rf"(?:^|`)[ ]*{start} +([^`\n]*)", EVERYWHERE, re.MULTILINE)
    assert found
    return [re.split(r"\s#|\s\||[;(]|\s\.\.\.|…", command)[0] for command in found]


def flags(command: str) -> set[str]:
    return set(re.findall(r"(?:^|\s)(--[a-z_.]+)", command))


def anchor(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if target.startswith("http"):
            continue
        name, _, place = target.partition("#")
        file = (page.parent / name) if name else page
        assert file.exists(), f"{page.name}: {target}"
        if place:
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert place in map(anchor, titles), f"{page.name}: {target}"


@pytest.mark.parametrize("name", COMMANDS)
def test_subcommands_have_the_flags_that_pages_give_them(name):
    known = {option for action in COMMANDS[name]._actions for option in action.option_strings}
    typed = [command for command in commands("universeg") if command.split()[:1] == [name]]
    assert typed, f"no page shows universeg {name}"
    for command in typed:
        assert flags(command) <= known, command


def test_pages_name_no_other_subcommand():
    words = {command.split()[0] for command in commands("universeg") if command.strip()}
    assert {word for word in words if word.isalpha()} <= set(COMMANDS)


def test_configs_and_their_fields_exist():
    for command in commands("python train.py"):
        config = re.search(r"--config=configs/(\w+)\.py(?::([\w:]+))?", command)
        if not config:
            continue
        module = importlib.import_module(f"universeg_jax.configs.{config[1]}")
        fields = flatten(to_dict(module.get_config(config[2]) if config[2] else module.get_config()))
        asked = {flag.removeprefix("--config.") for flag in flags(command) if flag.startswith("--config.")}
        assert asked <= fields.keys(), command
    named = set(re.findall(r"--config\.([a-z_.]*[a-z_])=", EVERYWHERE))
    assert named <= flatten(to_dict(importlib.import_module("universeg_jax.configs.default").get_config())).keys()


def test_benchmarks_have_the_flags_that_pages_give_them():
    for command in commands("python -m"):
        module = command.split()[0]
        if module.startswith("benchmarks."):
            source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
            assert not [flag for flag in flags(command) if f'"{flag}"' not in source], command


def test_files_that_pages_name_exist():
    folders = ("universeg_jax", "configs", "tests", "benchmarks", "docs")
    for name in re.findall(rf"`((?:{'|'.join(folders)})/[\w./-]+\.\w+)", EVERYWHERE):
        assert "NAME" in name or (ROOT / name).exists(), name
