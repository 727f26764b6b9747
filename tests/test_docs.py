"""What the pages name exists: links, files, commands with their flags, fields of configurations, functions."""

import argparse
import importlib
import re
from pathlib import Path

import pytest

from universeg_jax.cli import make_parser
from universeg_jax.configuration import flatten, to_dict
from universeg_jax.model.factory import build_model, param_shapes

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")),
    *sorted((ROOT / "docs").glob("*.md")),
]
TEXTS = {page: re.sub(r"\\\n\s*", " ", page.read_text()) for page in PAGES}  # puts a command on one line
ALL_TEXT = "\n".join(TEXTS.values())
COMMANDS = next(a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
FOLDERS = ("universeg_jax", "configs", "tests", "benchmarks", "docs", "tools")


def commands(start: str) -> list[str]:
    """What follows `start` in code blocks and between backticks, up to a comment or a pipe."""
    found = re.findall(rf"(?:^|`)[ ]*{start} +([^`\n]*)", re.sub(r"\\\n *", "", ALL_TEXT), re.MULTILINE)
    assert found
    return [re.split(r"\s#|\s\||[;(]|\s\.\.\.|…", command)[0] for command in found]


def flags(command: str) -> set[str]:
    return set(re.findall(r"(?:^|\s)(--[a-z_.]+)", command))


def default_fields() -> set[str]:
    return set(flatten(to_dict(importlib.import_module("universeg_jax.configs.default").get_config())))


def anchor(title: str) -> str:
    """The id that GitHub and MkDocs give a heading."""
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


def test_every_page_is_linked_and_in_the_site():
    site = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f": {page.name}\n" in site, f"{page.name} is not in the nav of mkdocs.yml"
        if page.name != "index.md":
            assert f"]({page.name})" in TEXTS[ROOT / "docs" / "index.md"], f"index.md does not link {page.name}"
        if page.name not in ("index.md", "api.md"):
            assert f"](docs/{page.name}" in TEXTS[ROOT / "README.md"], f"README.md does not link {page.name}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


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
        held = module.get_config(config[2]) if config[2] else module.get_config()
        fields = flatten(to_dict(held))
        given = {flag.removeprefix("--config.") for flag in flags(command) if flag.startswith("--config.")}
        assert given <= fields.keys(), command
        switches = re.findall(r"--config\.model\.(\w+)=(True|False)", command)
        held.model.update({field: value == "True" for field, value in switches})
        param_shapes(build_model(held.model))  # fields that need each other are given together
    assert set(re.findall(r"--config\.([a-z_.]*[a-z_])=", ALL_TEXT)) <= default_fields()


def test_fields_and_sections_in_backticks_exist():
    fields = default_fields()
    sections = {field.rsplit(".", depth)[0] for field in fields for depth in (1, 2, 3)}
    named = set(re.findall(r"`config\.([a-z_.]*[a-z_])`", ALL_TEXT)) - {"json"}
    assert named
    assert named <= fields | sections


def test_benchmarks_have_the_flags_that_pages_give_them():
    for command in commands("python -m"):
        module = command.split()[0]
        if module.startswith("benchmarks."):
            source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
            assert not [flag for flag in flags(command) if f'"{flag}"' not in source], command


def test_files_that_pages_name_exist():
    for name in re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]+\.\w+)", ALL_TEXT):
        assert "NAME" in name or (ROOT / name).exists(), name


def test_modules_and_functions_in_the_architecture_exist():
    text = TEXTS[ROOT / "docs" / "architecture.md"]
    for room, modules in re.findall(r"^\| (?:`\w+`, )?`(\w+)/` \|.*\| (`.*) \|$", text, re.MULTILINE):
        for module in re.findall(r"`([\w/]+(?:\.py)?)`", modules.replace("/`", "`")):
            assert (ROOT / "universeg_jax" / room / module).exists(), f"{room}/{module}"
    paths = text[text.index("## The path") : text.index("## Comparison")]
    code = "\n".join(file.read_text() for file in (ROOT / "universeg_jax").rglob("*.py"))
    functions = set(re.findall(r"`([a-z]+_[a-z_]+)`", paths))
    assert functions > {"read_image", "augment_episode"}
    assert not [name for name in functions if f"def {name}(" not in code]
    for room, module in re.findall(r"`(\w+)/(\w+\.py)`", paths):
        assert (ROOT / "universeg_jax" / room / module).exists(), f"{room}/{module}"


def test_the_api_page_lists_what_exists():
    text = TEXTS[ROOT / "docs" / "api.md"]
    entries = re.findall(r"^::: ([\w.]+)\n    options:\n      members: \[(.*)\]$", text, re.MULTILINE)
    assert len(entries) == text.count(":::")
    for module, members in entries:
        for member in members.split(", "):
            assert getattr(importlib.import_module(module), member).__doc__, f"{module}.{member}"
