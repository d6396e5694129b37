"""Writes the reference of a package's public names, from their signatures and docstrings.

A page of the reference contains `<!-- api: PACKAGE -->`. While Sphinx reads the page, this comment is replaced by an
entry per public name. Docstrings are Markdown in the dialect of Hugging Face: sections `Args:`, `Attributes:`,
`Returns:` and `Example:`, and names in brackets and backticks, which become links if they are in the reference.
"""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any


# The packages that have a page. If several of them export the same name, its entry is on the page of the first one.
PACKAGES = (
    "trl_rec.items",
    "trl_rec.data",
    "trl_rec.models",
    "trl_rec.decoding",
    "trl_rec.semantic_ids",
    "trl_rec.losses",
    "trl_rec.trainer",
    "trl_rec.schedule",
    "trl_rec.evaluation",
    "trl_rec.serving",
    "trl_rec.serving.exports",
    "trl_rec.serving.vllm",
)
# If a dataclass has more parameters than this, its signature shows only the first parameter and those that are listed
# in its docstring. Configurations are such dataclasses, because they inherit more than a hundred parameters from TRL.
MOST_PARAMETERS = 30
REFERENCE = re.compile(r"<!-- api: (?P<package>[\w.]+) -->")
SECTION = re.compile(r"^(Args|Attributes|Returns|Example):$", re.MULTILINE)
ENTRY = re.compile(r"(?P<name>[\w*, ]+?)(?: \((?P<type>.+?)\))?:(?: |$)(?P<text>.*)", re.DOTALL)
LINK = re.compile(r"\[`(?P<tilde>~?)(?P<name>[\w.]+)`\](?!\()")
HEADINGS = {"Args": "Arguments", "Attributes": "Attributes", "Returns": "Returns", "Example": "Example"}


def with_reference(page: str) -> str:
    """Returns the text of a page in which each `<!-- api: PACKAGE -->` is replaced by the reference of the package."""
    return REFERENCE.sub(lambda match: reference(match["package"]), page)


def reference(package: str) -> str:
    """Returns the entries of a package's public names, in alphabetical order, as MyST Markdown."""
    names = [name for name, home in homes().items() if home == package]
    return "\n\n".join(entry(f"{package}.{name}", getattr(import_module(package), name)) for name in sorted(names))


@cache
def homes() -> dict[str, str]:
    """Maps each public name to the package whose page contains its entry."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        for name in import_module(package).__all__:
            found.setdefault(name, package)
    return found


@cache
def targets() -> dict[str, str]:
    """Maps the short name of everything that has an entry, such as `ItemCatalog.load`, to its full name."""
    found = {}
    for name, package in homes().items():
        found[name] = f"{package}.{name}"
        for method, _ in members(getattr(import_module(package), name)):
            found[f"{name}.{method}"] = f"{package}.{name}.{method}"
    return found


def entry(full_name: str, thing: Any) -> str:
    """Returns the entry of a class, a function or any other public value."""
    docstring = inspect.getdoc(thing) or ""
    if not inspect.isclass(thing):
        kind = "function" if callable(thing) else "data"
        call = call_of(thing, docstring) if callable(thing) else ""
        return directive(kind, full_name + call, rendered(docstring))
    methods = [
        directive(kind_of(thing, name), name + call_of(member, ""), rendered(inspect.getdoc(member) or ""))
        for name, member in members(thing)
    ]
    body = "\n\n".join([rendered(docstring), *methods])
    return directive("class", full_name + call_of(thing, docstring), body, colons=4)


def directive(kind: str, title: str, body: str, colons: int = 3) -> str:
    """Returns a directive of Sphinx's Python domain. It can contain directives that have fewer colons."""
    return f"{':' * colons}{{py:{kind}}} {title}\n\n{body}\n{':' * colons}"


def members(thing: Any) -> Iterator[tuple[str, Any]]:
    """Yields the name and the function of each documented public method and property that a class itself defines."""
    if not inspect.isclass(thing):
        return
    for name, member in vars(thing).items():
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if not name.startswith("_") and inspect.isfunction(function) and function.__doc__:
            yield name, function


def kind_of(owner: type, name: str) -> str:
    """Returns the name of the directive for a member of a class, such as `property` or `method`."""
    kinds = {property: "property", classmethod: "classmethod", staticmethod: "staticmethod"}
    return kinds.get(type(vars(owner)[name]), "method")


def call_of(thing: Any, docstring: str) -> str:
    """Returns the parameters of a call, in parentheses. Types are omitted, because docstrings have them."""
    try:
        parameters = list(inspect.signature(thing).parameters.values())
    except (TypeError, ValueError):
        return ""
    if dataclasses.is_dataclass(thing) and len(parameters) > MOST_PARAMETERS:
        own = [one for one in parameters if f"\n    {one.name} (" in docstring]
        shown = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own]
        return f"({parameters[0].name}, *, {', '.join(map(parameter, shown))}, **kwargs)"
    words, is_marked = [], False
    for one in parameters:
        if one.name == "self" or one.name == "cls":
            continue
        is_marked = is_marked or one.kind is inspect.Parameter.VAR_POSITIONAL
        if one.kind is inspect.Parameter.KEYWORD_ONLY and not is_marked:
            words.append("*")
            is_marked = True
        words.append(parameter(one))
    return f"({', '.join(words)})"


def parameter(one: inspect.Parameter) -> str:
    """Returns a parameter as it is written in a signature. A default that is not a simple value becomes `...`."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(one.kind, "")
    if one.default is inspect.Parameter.empty:
        return stars + one.name
    is_simple = isinstance(one.default, str | int | float | bool | None) and "\n" not in repr(one.default)
    is_simple = is_simple or (isinstance(one.default, tuple) and all(isinstance(part, int) for part in one.default))
    return f"{one.name}={repr(one.default) if is_simple else '...'}"


def rendered(docstring: str) -> str:
    """Returns a docstring as MyST Markdown."""
    first, *parts = SECTION.split(docstring)
    blocks = [first.strip()]
    for heading, body in zip(parts[::2], parts[1::2], strict=True):
        inside, after = split_section(body.strip("\n"))
        text = arguments(inside) if heading in ("Args", "Attributes") else inside
        blocks += [f"**{HEADINGS[heading]}**", text, after]
    return LINK.sub(linked, "\n\n".join(block for block in blocks if block))


def split_section(body: str) -> tuple[str, str]:
    """Splits the text after a heading into the section, without its indentation, and the unindented text after it.

    If the section itself is not indented, as in some examples, it extends to the end of the text.
    """
    end = re.search(r"\n(?=\S)", body) if body.startswith(" ") else None
    inside = body if end is None else body[: end.start()]
    after = "" if end is None else body[end.end() :]
    return textwrap.dedent(inside).strip(), after.strip()


def arguments(text: str) -> str:
    """Returns the entries of a section as a Markdown list."""
    lines = []
    for one in re.split(r"\n(?=\S)", text):
        match = ENTRY.fullmatch(one)
        if match is None:
            lines.append(f"- {one}")
            continue
        kind = f" ({match['type']})" if match["type"] else ""
        head, _, rest = match["text"].partition("\n")
        body = "\n".join([head.strip(), textwrap.dedent(rest)]).strip()
        names = ", ".join(f"`{name}`" for name in match["name"].split(", "))
        lines.append(f"- {names}{kind}: " + textwrap.indent(body, "  ").lstrip())
    return "\n".join(lines)


def linked(match: re.Match[str]) -> str:
    """Returns a link to an entry of the reference, or the name alone if it has no entry."""
    name = match["name"]
    parts = name.split(".")
    for start in range(len(parts)):
        short = ".".join(parts[start:])
        if short in targets():
            shown = parts[-1] if match["tilde"] else name
            return f"{{py:obj}}`{shown} <{targets()[short]}>`"
    return f"`{parts[-1] if match['tilde'] else name}`"
