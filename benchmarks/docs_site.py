"""A hook of mkdocs: pages that lie outside docs/, files that pages link to, the table of flags.

mkdocs.yml names it; `make docs` runs it. Pages keep the relative links that work in the repository.
Here they become links within the site: a page of OUTSIDE has a place there, and any other file that
is linked to is shown as a page of code.
"""

from __future__ import annotations

import posixpath
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = {  # page in the repository -> page of the site
    "README.md": "readme.md",  # in no menu: its links are checked with the others
    "features/README.md": "features.md",
    "logs/README.md": "logs.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "model-card.md": "model-card.md",
}
LANGUAGES = {".py": "python", ".sh": "bash", ".json": "json", ".yml": "yaml", ".txt": "text"}
CODE = re.compile(r"(^```.*?^```$|^(?: {4}|\t)[^\n]*$|``.+?``|`[^`\n]+`)", re.M | re.S)
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)\s#]+)")
FLAGS = "<!-- flags -->"


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    pages = {f"docs/{file.src_uri}": file.src_uri for file in files.documentation_pages()}
    pages |= OUTSIDE
    for path, uri in OUTSIDE.items():
        files.append(File.generated(config, uri, content=(ROOT / path).read_text("utf-8")))
    for path in sorted({target for page in pages for target in targets(page)}):
        if path not in pages and not path.startswith("docs/") and (ROOT / path).is_file():
            shown = File.generated(config, f"source/{path}.md", content=code_page(path))
            files.append(shown)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    if FLAGS in markdown:
        command = [sys.executable, "-m", "benchmarks.flags"]
        made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        markdown = markdown.replace(FLAGS, made.stdout)
    if page.file.src_uri.startswith("source/"):
        return markdown
    place = {uri: path for path, uri in OUTSIDE.items()}.get(page.file.src_uri)
    return outside_code(markdown, lambda text: LINK.sub(within(place or page_path(page)), text))


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Short names such as --flags keep one line, and words such as preprocess.py also in the tables
    on a phone; docs/assets/site.css says so of these classes."""
    html = re.sub(r"<code>([^<\s]{1,24})</code>", r'<code class="short word">\1</code>', html)
    return re.sub(r"<code>([^<\n]{1,34})</code>", r'<code class="short">\1</code>', html)


def page_path(page: Any) -> str:
    return f"docs/{page.file.src_uri}"


def within(path: str) -> Any:
    """Replaces a link of the page `path` of the repository by one of the site."""

    def replace(match: re.Match[str]) -> str:
        target = resolve(path, match[1])
        if target.startswith("docs/"):
            return f"]({target.removeprefix('docs/')}"
        if target in OUTSIDE:
            return f"]({OUTSIDE[target]}"
        return f"](source/{target}.md"

    return replace


def targets(path: str) -> set[str]:
    """The files of the repository that a page links to."""
    found: set[str] = set()

    def collect(text: str) -> str:
        found.update(resolve(path, link) for link in LINK.findall(text))
        return text

    outside_code((ROOT / path).read_text("utf-8"), collect)
    return found


def resolve(path: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def outside_code(text: str, change: Any) -> str:
    """`change` applied to all of a page that is no code."""
    return "".join(
        part if number % 2 else change(part) for number, part in enumerate(CODE.split(text))
    )


def code_page(path: str) -> str:
    """A page that shows a file; the search leaves it out."""
    text = (ROOT / path).read_text("utf-8").rstrip()
    language = LANGUAGES.get(Path(path).suffix, "text")
    head = "---\nsearch:\n  exclude: true\n---\n"
    return f"{head}# {path}\n\n````{language}\n{text}\n````\n"
