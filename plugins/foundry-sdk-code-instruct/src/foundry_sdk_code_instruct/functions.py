"""Functions with a docstring, found in Python source, and their code without it."""

import ast
import inspect
import textwrap
import warnings
from collections.abc import Iterator

import attrs

_Function = ast.FunctionDef | ast.AsyncFunctionDef


@attrs.frozen(kw_only=True)
class DocumentedFunction:
    """A function, its docstring apart from its code.

    Attributes:
        name: dotted where it is a method, as in ``Stack.push``.
        docstring: without indentation.
        code: from its decorators to its last line, without docstring and outer indentation; valid
            Python that does what the original does.
    """

    name: str
    docstring: str
    code: str


def documented_functions(source: str, *, methods: bool = False) -> Iterator[DocumentedFunction]:
    """Yield the functions of a module that have a docstring, in their order.

    Functions inside of others are left out, and so are those whose docstring is all their code or
    shares a line with it.

    Args:
        source: of a module, or of one function.
        methods: those of classes too.

    Raises:
        SyntaxError: it is no Python (of the version that runs this).
        ValueError: it has null bytes.
    """
    source = textwrap.dedent(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the source that is read, such as invalid escapes
        tree = ast.parse(source)
        lines = source.encode().splitlines(keepends=True)
        for name, node in _functions(tree, prefix="", methods=methods):
            docstring = ast.get_docstring(node, clean=False)
            code = _without_docstring(node, lines)
            if docstring and docstring.strip() and code is not None:
                yield DocumentedFunction(
                    name=name, docstring=inspect.cleandoc(docstring), code=code
                )


def _functions(
    parent: ast.Module | ast.ClassDef, *, prefix: str, methods: bool
) -> Iterator[tuple[str, _Function]]:
    for node in parent.body:
        if isinstance(node, _Function):
            yield f"{prefix}{node.name}", node
        elif isinstance(node, ast.ClassDef) and methods:
            yield from _functions(node, prefix=f"{prefix}{node.name}.", methods=methods)


def _without_docstring(node: _Function, lines: list[bytes]) -> str | None:
    """Return the function's code without its docstring; None where that cannot be cut out."""
    text = node.body[0]
    if len(node.body) < 2 or not isinstance(text, ast.Expr):
        return None
    first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
    before = lines[text.lineno - 1][: text.col_offset]
    after = lines[(text.end_lineno or 0) - 1][text.end_col_offset :]
    if before.strip() or after.split(b"#")[0].strip():
        return None
    kept = lines[first - 1 : text.lineno - 1] + lines[text.end_lineno : node.end_lineno]
    code = textwrap.dedent(b"".join(kept).decode()).strip("\n") + "\n"
    return code if _does_the_same(code, node) else None


def _does_the_same(code: str, node: _Function) -> bool:
    """Tell whether ``code`` is the function without its docstring.

    Dedenting changes texts of several lines, and then it is not.
    """
    try:
        [found] = ast.parse(code).body
    except (SyntaxError, ValueError):
        return False
    bare = type(node)(**{**dict(ast.iter_fields(node)), "body": node.body[1:]})
    return ast.dump(found) == ast.dump(bare)
