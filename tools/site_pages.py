"""Hooks of mkdocs.yml: pages from outside docs/, titles for links that show a file name, marks for docs/site.css."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for page, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, config: MkDocsConfig, **_: Any) -> str:
    """[own-data.md](own-data.md#place) becomes [Own images](own-data.md#place), by the titles of the nav.

    Links to ../CONTRIBUTING.md and the like lead to their pages.
    """
    for page, source in PAGES.items():
        markdown = markdown.replace(f"](../{source}", f"]({page}")
    titles = {page: title for part in config.nav or [] for title, page in _leaves(part)}
    return re.sub(
        r"\[(?:docs/)?([\w-]+\.md)\]\((\1)", lambda link: f"[{titles.get(link[1], link[1])}]({link[2]}", markdown
    )


def _leaves(part: dict[str, Any]) -> list[tuple[str, str]]:
    ((title, content),) = part.items()
    return [(title, content)] if isinstance(content, str) else [leaf for inner in content for leaf in _leaves(inner)]


def on_page_content(html: str, **_: Any) -> str:
    """Marks what docs/site.css lays out: flags in code, and drawings of characters, whose lines must not wrap."""
    return re.sub(r"<pre.*?</pre>|<code.*?</code>", _marked, html, flags=re.DOTALL)


def _marked(code: re.Match[str]) -> str:
    text = re.sub(r"(?<![\w-])--\w+", r'<span class="flag">\g<0></span>', code[0])
    return text.replace("<pre>", '<pre class="drawing">') if "│" in text else text
