"""What a page says of a function or class: one sentence, how it is called, and its parameters as a table.

nbdev's own entry is a block of code in which types, defaults and comments share lines that no screen holds. All is read
from the modules, in the words of their authors; nothing is imported for it."""
import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from html import escape
from pathlib import Path
from typing import NamedTuple

from nbdev.doclinks import NbdevLookup

import netinv

MODULES = Path(netinv.__file__).parent
LINK = re.compile(r"(!?\[(?:[^][`]|`[^`]*`)*\]\([^)]*\))")  # as markdown writes it
CODE = re.compile(r"`([^`]+)`")
SELF = {"self", "cls"}

Definition = ast.FunctionDef | ast.ClassDef


# Links from names to the places where they are defined

_link_line = NbdevLookup.link_line


def link_names(lookup: NbdevLookup, line: str) -> str:
    "A line of markdown in which names in backticks become links; what is a link already stays as it is."
    return "".join(part if at % 2 else _link_line(lookup, part) for at, part in enumerate(LINK.split(line)))


def link(name: str) -> str:
    "A name as HTML, and as a link where the site knows it."
    address = NbdevLookup().doc(name.removesuffix("()"))
    return f'<a href="{address}">{escape(name)}</a>' if address else escape(name)


def kind(type: str) -> str:
    "A type as HTML code, each class in it a link."
    parts = enumerate(re.split(r"(?<![\w.])([A-Z]\w+)", type))
    return f"<code>{''.join(link(part) if at % 2 else escape(part) for at, part in parts)}</code>"


def prose(comment: str) -> str:
    "A comment as HTML: what stands in backticks is code."
    parts = enumerate(CODE.split(comment))
    return "".join(f"<code>{link(part)}</code>" if at % 2 else escape(part) for at, part in parts)


# Definitions, and their parameters as they are written

class Parameter(NamedTuple):
    "One parameter, or what is returned."
    name: str          # with its stars
    type: str = ""
    default: str = ""
    comment: str = ""


class Source(NamedTuple):
    "Where a name is defined."
    node: Definition
    comments: dict[int, str]  # by line


def owner(node: ast.FunctionDef) -> str:
    "The class that `@patch` gives a function to, with a dot."
    patched = any(ast.unparse(mark).startswith("patch") for mark in node.decorator_list)
    return f"{ast.unparse(node.args.args[0].annotation)}." if patched else ""


def named(nodes: list[ast.stmt]) -> Iterator[tuple[str, Definition]]:
    "Every definition of a module, with its full name."
    for node in nodes:
        if isinstance(node, ast.FunctionDef): yield owner(node) + node.name, node
        if isinstance(node, ast.ClassDef):
            yield node.name, node
            yield from ((f"{node.name}.{name}", part) for name, part in named(node.body))


@cache
def definitions() -> dict[str, Source]:
    "All definitions of the library by name."
    found = {}
    for path in sorted(MODULES.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
        found |= {name: Source(node, comments) for name, node in named(ast.parse(text).body)}
    return found


def written(node: ast.AST | None) -> str:
    "The source of a node; a type in quotes loses them."
    if node is None: return ""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ast.unparse(node)


def fields(source: Source) -> list[Parameter]:
    "Those of a dataclass or a named tuple, which its constructor takes."
    makes = [*source.node.decorator_list, *source.node.bases]
    if not any(re.match("dataclass|NamedTuple", ast.unparse(make)) for make in makes): return []
    own = (part for part in source.node.body if isinstance(part, ast.AnnAssign))
    value = lambda part: ast.unparse(part.value) if part.value else ""
    return [Parameter(part.target.id, written(part.annotation), value(part), source.comments.get(part.end_lineno, ""))
            for part in own if "init=False" not in value(part)]


def arguments(source: Source) -> list[Parameter]:
    "Those of a function; a bare star stands before the ones that are given by name alone."
    args, comments = source.node.args, source.comments
    def parameter(arg: ast.arg, default: ast.expr | None = None, stars: str = "") -> Parameter:
        comment = comments.get((default or arg).end_lineno, "")
        return Parameter(stars + arg.arg, written(arg.annotation), ast.unparse(default) if default else "", comment)

    plain = args.posonlyargs + args.args
    defaults = [None] * (len(plain) - len(args.defaults)) + args.defaults
    found = [parameter(arg, default) for arg, default in zip(plain, defaults) if arg.arg not in SELF]
    if args.vararg: found.append(parameter(args.vararg, stars="*"))
    elif args.kwonlyargs: found.append(Parameter("*"))
    found += map(parameter, args.kwonlyargs, args.kw_defaults)
    if given := delegated(source): return found + [p for p in given if p.name not in {q.name for q in found}]
    return found + ([parameter(args.kwarg, stars="**")] if args.kwarg else [])


def delegated(source: Source) -> list[Parameter]:
    "Those with a default of the function that fastcore's `delegates` names, which the keyword arguments stand for."
    marks = (ast.unparse(mark) for mark in source.node.decorator_list)
    to = next((found[1] for mark in marks if (found := re.match(r"delegates\((.+)\)$", mark))), None)
    return [p for p in arguments(definitions()[to]) if p.default] if to in definitions() else []


def parameters(source: Source) -> list[Parameter]:
    "Those of a function, or of what makes an instance of a class, its own or inherited."
    if isinstance(source.node, ast.FunctionDef): return arguments(source)
    made = definitions().get(f"{source.node.name}.__init__")
    if made: return arguments(made)
    inherited = [definitions()[base] for base in map(ast.unparse, source.node.bases) if base in definitions()]
    return fields(source) or next(map(parameters, inherited), [])


def returned(source: Source) -> Parameter | None:
    "What a function returns, unless that is nothing."
    type = getattr(source.node, "returns", None)
    if type is None or written(type) == "None": return None
    return Parameter("returns", written(type), "", source.comments.get(type.end_lineno, ""))


# The entry

def call(name: str, source: Source) -> str:
    "How it is called, or that it is a class."
    given = [f"{p.name}={p.default}" if p.default else p.name for p in parameters(source)]
    word = "class " if isinstance(source.node, ast.ClassDef) else "" if "." in name else "def "
    is_property = any(ast.unparse(mark).startswith("property") for mark in source.node.decorator_list)
    return word + name + ("" if is_property else f"({', '.join(given)})")


def row(parameter: Parameter) -> str:
    "One line of the table."
    default = f' <span class="given">= <code>{escape(parameter.default)}</code></span>' if parameter.default else ""
    type = kind(parameter.type) if parameter.type else ""
    name = parameter.name if parameter.name == "returns" else f"<code>{parameter.name}</code>"
    return f'<tr><th scope="row">{name}</th><td>{type}{default}</td><td>{prose(parameter.comment)}</td></tr>'


def table(source: Source) -> str:
    "The parameters and what is returned as HTML; empty where there is nothing to say."
    shown = [p for p in parameters(source) if p.name != "*" and (p.type or p.comment)]
    shown += filter(None, [returned(source)])
    if not shown: return ""
    head = "<thead><tr><th>parameter</th><th>type, default</th><th>what it is</th></tr></thead>"
    whole = f'<table class="parameters" data-quarto-disable-processing="true">{head}<tbody>'
    return "\n".join(["```{=html}", whole, *map(row, shown), "</tbody></table>", "```"])


class Entry:
    "What nbdev's `show_doc` shows: open for the public face, parameters folded for methods and what lies below it."

    def __init__(self, symbol: object, name: str | None = None, title_level: int = 3):
        symbol = getattr(symbol, "fget", None) or symbol
        self.name, self.level = name or symbol.__qualname__, title_level
        self.says = " ".join((symbol.__doc__ or "").split())

    def _repr_markdown_(self) -> str:
        source, address = definitions()[self.name], NbdevLookup().code(self.name)
        head = f"{'#' * self.level} {self.name}\n\n{self.says} [source]({address}){{.entry-source}}"
        entry = f"{head}\n\n```{{.python .call}}\n{call(self.name, source)}\n```\n"
        shown = table(source)
        if shown and self.name not in netinv.__all__:
            shown = f'<details class="entry"><summary>Parameters</summary>\n\n{shown}\n\n</details>'
        return f"{entry}\n{shown}\n"
