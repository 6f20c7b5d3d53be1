"""What the site adds to the documents: generated reference, and links that lead out of ``docs/``.

The documents are written for readers of the repository. In the site, a link to one of ``OUTSIDE``
leads to a page of the site, and a link to a file of the sources becomes plain text.
"""

import os.path
import re
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "src"), str(ROOT / "clients" / "python")]

import reference  # noqa: E402  # beside this file

OUTSIDE = {
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "bench/README.md": "project/bench.md",
    "clients/python/README.md": "python-client.md",
}
"""Documents elsewhere in the repository, and their pages."""

GROUPS = {"runbooks": "Runbooks", "decisions": "Decisions", "errors": "Errors by code"}
"""Folders whose pages need not be listed in ``mkdocs.yml`` one by one."""

REST = "More"
"""Group of the pages that ``mkdocs.yml`` does not list."""

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_MERMAID = re.compile(r"^```mermaid\n.*?^```$", re.MULTILINE | re.DOTALL)
_ELSEWHERE = re.compile(r'<script src="?https://unpkg\.com/[^>]*></script>')
_MARK = re.compile(r"^<!-- (?:run|shown|output|options).*?-->\n", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: Any) -> Files:  # Any: mkdocs' own
    """Add the pages that are not files in ``docs/``."""
    texts = reference.pages()
    for source, page in OUTSIDE.items():
        texts[page] = (ROOT / source).read_text(encoding="utf-8")
    for path, text in texts.items():
        files.append(File.generated(config, path, content=text))
    _complete(config, files)
    return files


def _complete(config: Any, files: Files) -> None:
    """Add the pages of ``GROUPS``, and those that nobody has listed, to the navigation."""
    listed = set(re.findall(r"[\w./-]+\.md", str(config.nav)))
    by_group: dict[str, list[str]] = {}
    for file in files.documentation_pages():
        path = file.src_uri
        if path not in listed:
            by_group.setdefault(GROUPS.get(path.partition("/")[0], REST), []).append(path)
    config.nav += [{name: sorted(pages)} for name, pages in sorted(by_group.items())]


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead links to pages of the site; show the picture of a diagram instead of its source."""
    path = page.file.src_uri
    picture = os.path.relpath("pictures/architecture.svg", Path(path).parent)
    markdown = _MERMAID.sub(f"![The processes of a server]({picture})", markdown)
    markdown = _MARK.sub("", markdown)
    if path.startswith(("reference/", "errors/")):
        return markdown
    source = next((each for each, of in OUTSIDE.items() if of == path), f"docs/{path}")
    parts = _FENCE.split(markdown)
    parts[::2] = [_LINK.sub(lambda link: _lead(link, source, path), part) for part in parts[::2]]
    return "".join(parts)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Take out what the theme would load from elsewhere: a shim for the search on file://."""
    return _ELSEWHERE.sub("", output)


def on_post_template(output_content: str, template_name: str, config: Any) -> str:
    """Do so in the page that a server gives for a page that it does not have."""
    return _ELSEWHERE.sub("", output_content)


def _lead(link: re.Match[str], source: str, page: str) -> str:
    """Return a link as the site has it. ``source`` is the document's path in the repository."""
    shown, target = link.group(2), link.group(3)
    if re.match(r"[a-z]+:|#", target):
        return link.group()
    path, mark, anchor = target.partition("#")
    found = os.path.normpath(PurePosixPath(source).parent / path)
    if found in OUTSIDE:
        found = OUTSIDE[found]
    elif found == "docs" or found == "docs/decisions":
        found = str(PurePosixPath(found, "README.md").relative_to("docs"))
    elif found.startswith("docs/") and (ROOT / found).is_file():
        found = found.removeprefix("docs/")
    else:
        return shown  # a file of the sources, which the site does not have
    relative = os.path.relpath(found, PurePosixPath(page).parent)
    return f"{link.group(1)}[{shown}]({relative}{mark}{anchor})"
