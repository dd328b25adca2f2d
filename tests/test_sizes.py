"""The library stays small: few entries, short modules, short functions."""

import ast

from lib.runtime.disk import ROOT

MODULES = sorted((ROOT / "lib").rglob("*.py"))
ENTRIES, MODULE_LINES, FUNCTION_LINES, LIBRARY_LINES = 12, 300, 60, 14_950


def lines(path):
    return len(path.read_text(encoding="utf-8").splitlines())


def body_lines(function):
    """Lines from the `def` to the end, without the docstring; decorators are not counted."""
    whole = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is None:
        return whole
    docstring = function.body[0]
    return whole - (docstring.end_lineno - docstring.lineno + 1)


def functions(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_lib_has_few_entries():
    entries = sorted(path.name for path in (ROOT / "lib").iterdir() if path.name != "__pycache__")
    assert len(entries) <= ENTRIES, entries


def test_no_module_is_long():
    long = {str(path.relative_to(ROOT)): lines(path) for path in MODULES if lines(path) > MODULE_LINES}
    assert not long


def test_no_function_is_long():
    assert len([function for path in MODULES for function in functions(path)]) > 100, "they are found"
    long = {
        f"{path.relative_to(ROOT)}: {function.name}": body_lines(function)
        for path in MODULES
        for function in functions(path)
        if body_lines(function) > FUNCTION_LINES
    }
    assert not long


def test_lib_without_its_figures_is_small():
    counted = {path: lines(path) for path in MODULES if "figures" not in path.relative_to(ROOT).parts}
    assert sum(counted.values()) <= LIBRARY_LINES


def test_docstrings_are_not_counted():
    tree = ast.parse('def f(x):\n    """One.\n\n    Two.\n    """\n    return x\n')
    assert body_lines(tree.body[0]) == 2
