"""Adapts the text of a page for the documentation site.

Adds the navigation, replaces file names in the texts of links with the titles of the pages, and corrects links to
files outside of `docs/`. The pages themselves stay plain Markdown, so that they can be read in the repository.
"""

import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath


DOCS = Path(__file__).parent
# Maps files outside of `docs/` to the pages of the site that show these files. Paths are relative to `docs/`, without
# `.md`.
ELSEWHERE = {
    "../recipes/README": "site/recipes",
    "../CHANGELOG": "site/changelog",
    "../CONTRIBUTING": "site/contributing",
}
# The navigation consists of the links on these three pages. Each page is mapped to a folder, and its links count only
# if they lead into this folder. The start page (`index`) has no folder: there, every link in a list counts, and the
# links are grouped by heading.
NAVIGATION = {"index": "", "methods": "methods/", "api": "site/api/"}
LINK = re.compile(r"\]\((?P<page>[\w./-]+)\.md(?P<anchor>#[\w-]+)?\)")
NAMED_AS_FILE = re.compile(r"\[`?[\w./-]+\.md`?\](?=\((?P<page>[\w./-]+)\.md)")  # the text of the link is a file name


def for_site(docname: str, text: str) -> str:
    """Returns the text of a page, adapted for the site.

    Args:
        docname: Name of the page: its path in `docs/`, without `.md`.
        text: The Markdown of the page.
    """
    text = NAMED_AS_FILE.sub(lambda match: f"[{_title(docname, match['page'])}]", text)
    text = LINK.sub(lambda match: f"]({_site_page(docname, match['page'])}.md{match['anchor'] or ''})", text)
    return text + _navigation(docname, text)


def _title(docname: str, page: str) -> str:
    """Returns the title of the page that a link on the page `docname` leads to."""
    file = DOCS / dirname(docname) / f"{page}.md"
    return file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def _site_page(docname: str, page: str) -> str:
    """Returns the page that a link leads to on the site, relative to the page that contains the link."""
    target = normpath(join(dirname(docname), page))
    return relpath(ELSEWHERE.get(target, target), dirname(docname) or ".")


def _navigation(docname: str, text: str) -> str:
    """Returns the table of contents that Sphinx needs, made from the links of a page in `NAVIGATION`.

    Returns an empty string for all other pages.
    """
    if docname not in NAVIGATION:
        return ""
    blocks = []
    is_start = docname == "index"
    for section in re.split(r"^## ", text, flags=re.MULTILINE):
        lines = section.splitlines()
        listed = [line for line in lines if line.startswith("- ") or not is_start]
        found = [match["page"] for line in listed for match in LINK.finditer(line)]
        pages = [page for page in dict.fromkeys(found) if page.startswith(NAVIGATION[docname])]
        if pages:
            caption = [f":caption: {lines[0]}"] if is_start else []
            blocks.append("\n".join(["", "```{toctree}", ":hidden:", *caption, "", *pages, "```", ""]))
    return "".join(blocks)
