"""Chat templates are small programs by strangers: only what Qwen's are made of, and every step is counted."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, Undefined, nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

LARGEST = 2**16
"""Characters of a template; Qwen3-VL's has 5,000."""

DEEPEST = 4
"""Loops within loops."""

KINDS = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.For, nodes.If, nodes.CondExpr, nodes.Macro),
    *(nodes.Assign, nodes.AssignBlock, nodes.NSRef, nodes.Name, nodes.Const, nodes.Keyword, nodes.Pair),
    *(nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Call, nodes.Filter, nodes.Test),
    *(
        nodes.Compare,
        nodes.Operand,
        nodes.And,
        nodes.Or,
        nodes.Not,
        nodes.Add,
        nodes.Sub,
        nodes.Neg,
        nodes.Mod,
    ),
    *(nodes.List, nodes.Tuple, nodes.Dict, nodes.Break, nodes.Continue),
)
FILTERS = (
    *("tojson", "trim", "length", "count", "string", "safe", "items", "lower", "upper", "first", "last"),
    *("list", "default", "d", "int"),
)
TESTS = (
    *("string", "mapping", "iterable", "sequence", "defined", "undefined", "none", "true", "false"),
    *("number", "integer", "boolean", "in", "eq", "equalto", "==", "ne", "!="),
)
METHODS: dict[type, set[str]] = {
    str: {"split", "strip", "lstrip", "rstrip", "startswith", "endswith", "lower", "upper", "title"},
    dict: {"items", "keys", "values", "get"},
}
"""What a value may be asked to do, by its type: nothing that makes more of it."""

_BUDGET = " budget"  # no template can write this name


@dataclass
class _Budget:
    """What rendering may still take: steps, as many as there are parts of the template to go through, and
    characters that are written or put together.
    """

    steps: int
    characters: int

    def spend(self, steps: int, made: object = None) -> None:
        self.steps -= steps
        self.characters -= len(made) if isinstance(made, str | list | tuple) else 0
        if self.steps < 0 or self.characters < 0:
            what = "steps" if self.steps < 0 else "characters"
            raise TemplateError(f"it takes more {what} than a text of this length needs")


class _Generation(Extension):
    """`{% generation %}` marks what an assistant says; here it says nothing."""

    tags = {"generation"}

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Counting(ImmutableSandboxedEnvironment):
    """Sums and calls are counted, and few things can be called."""

    intercepted_binops = frozenset("+%")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and not isinstance(left, int):
            raise TemplateError("% is for whole numbers here")
        made = super().call_binop(context, operator, left, right)
        context.parent[_BUDGET].spend(1, made)
        return made

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        known = isinstance(__obj, Macro) or __obj in (Namespace, _raise_exception)
        if not known and name not in METHODS.get(type(owner), set()):
            raise TemplateError(f"it calls {name or type(__obj).__name__}, which no template of Qwen's does")
        __context.parent[_BUDGET].spend(100)  # whatever is in a macro
        made = super().call(__context, __obj, *args, **kwargs)
        __context.parent[_BUDGET].spend(0, made)
        return made


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


@pass_context
def _each(context: Context, values: Iterable, weight: int) -> Iterator:
    for value in values:
        context.parent[_BUDGET].spend(weight)
        yield value


@pass_context
def _shown(context: Context, value: Any) -> Any:
    if not isinstance(value, str | int | float | list | tuple | dict | Undefined | None):
        raise TemplateError(f"it shows a {type(value).__name__}")  # which might hold itself
    context.parent[_BUDGET].spend(1, value if isinstance(value, str) else str(value))
    return value


def _counted(name: str) -> Any:
    """One of jinja2's own filters, or transformers' `tojson`, with what it makes counted."""
    own = _ENVIRONMENT.filters[name]
    first = getattr(own, "jinja_pass_arg", None)

    @pass_context
    def counted(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(value, Namespace):
            raise TemplateError("a namespace has no filter")
        with_it = {"environment": _ENVIRONMENT, "eval_context": context.eval_ctx, "context": context}
        made = own(*([with_it[first.name]] if first else []), value, *args, **kwargs)
        context.parent[_BUDGET].spend(1, made)
        return made

    return counted


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    """As transformers has it: what is written is no HTML."""
    if indent is not None and not 0 <= indent <= 8:
        raise TemplateError(f"tojson's indent is {indent}; give up to 8")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _environment() -> _Counting:
    made = _Counting(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], finalize=_shown
    )
    made.globals = {"namespace": Namespace, "raise_exception": _raise_exception}
    made.filters["tojson"] = _tojson
    return made


_ENVIRONMENT = _environment()
_ENVIRONMENT.filters = {name: _counted(name) for name in FILTERS} | {"each": _each}


@lru_cache(maxsize=16)
def _compiled(text: str) -> tuple[Template, int]:
    """The template, and how many parts it has. Raises ValueError for one that Qwen would not write."""
    if len(text) > LARGEST:
        raise ValueError(f"the chat template has {len(text):,} characters, more than {LARGEST:,}")
    parsed = _ENVIRONMENT.parse(text)
    every = list(parsed.find_all(nodes.Node))
    for node in every:
        if problem := _problem(node):
            raise ValueError(f"the chat template has {problem} in line {node.lineno}, and Qwen's has none")
    if _depth(parsed) > DEEPEST:
        raise ValueError(f"the chat template has loops more than {DEEPEST} deep")
    for node in every:
        if isinstance(node, nodes.For):
            weight = nodes.Const(1 + sum(1 for _ in node.find_all(nodes.Node)))
            node.iter = nodes.Filter(node.iter, "each", [weight], [], None, None, lineno=node.lineno)
    code = _ENVIRONMENT.compile(parsed)
    return Template.from_code(_ENVIRONMENT, code, _ENVIRONMENT.make_globals(None)), len(every)


def _problem(node: nodes.Node) -> str:
    """What a part is that must not be there."""
    if not isinstance(node, KINDS):
        return type(node).__name__.lower()
    if isinstance(node, nodes.Filter) and node.name not in FILTERS:
        return f"filter {node.name}"
    if isinstance(node, nodes.Test) and node.name not in TESTS:
        return f"test {node.name}"
    if (
        isinstance(node, nodes.Call)
        and isinstance(node.node, nodes.Name)
        and node.node.name in ("range", "dict")
    ):
        return f"{node.node.name}()"
    if isinstance(node, nodes.For) and node.recursive:
        return "a recursive loop"
    held: Sequence[nodes.Node] = ()  # lists that hold lists twice grow without end
    if isinstance(node, nodes.List) or (isinstance(node, nodes.Tuple) and node.ctx == "load"):
        held = node.items
    if isinstance(node, nodes.Dict):
        held = [part for pair in node.items for part in (pair.key, pair.value)]
    return "a list of other than constants" if any(not isinstance(own, nodes.Const) for own in held) else ""


def _depth(node: nodes.Node) -> int:
    inner = max((_depth(child) for child in node.iter_child_nodes()), default=0)
    return inner + isinstance(node, nodes.For)


def render(template: str, chat: Sequence[Mapping[str, Any]], tokens: Mapping[str, Any]) -> str:
    """What a chat template writes for messages of texts and pictures, with a generation prompt, as
    transformers would; `tokens` are the tokenizer's special ones.

    Raises ValueError for a template with other parts than Qwen's, jinja2's TemplateError for one that takes
    more than it should, and whatever it runs into.
    """
    compiled, parts = _compiled(template)
    texts = [entry.get("text", "") for message in chat for entry in message["content"]]
    entries, characters = len(chat) + len(texts), sum(map(len, texts))
    budget = _Budget(2**16 + 4 * parts + 2**12 * entries, 2**16 + 8 * characters + 2**10 * entries)
    known = {"messages": chat, "tools": None, "documents": None, "add_generation_prompt": True}
    return compiled.render({**tokens, **known, _BUDGET: budget})
