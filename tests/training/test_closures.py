"""No nested function of the product reads a variable that a loop of the enclosing function rebinds.

Such a function sees the value of the latest iteration, not that of the iteration in which it was made. It also hides
what the loop depends on. The value can be passed as an argument, or bound by a default argument.
"""

import ast

import pytest
from house import PACKAGES, ROOT, sources

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
LOOPS = (ast.For, ast.AsyncFor, ast.While)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def scope_nodes(function):
    """Yields (node, is in a loop) for all nodes that belong to a function itself, not to a function inside it."""

    def visit(node, in_loop):
        yield node, in_loop
        # The enclosing function evaluates the default arguments and decorators of a function.
        inside = [node.args, *getattr(node, "decorator_list", ())] if isinstance(node, FUNCTIONS) else None
        for child in ast.iter_child_nodes(node) if inside is None else inside:
            yield from visit(child, in_loop or isinstance(node, LOOPS))

    for node in function.body if isinstance(function.body, list) else [function.body]:
        yield from visit(node, False)


def names_bound_by(node) -> set[str]:
    """Returns the names that a single node binds in its scope."""
    if isinstance(node, ast.Name):
        return {node.id} if isinstance(node.ctx, ast.Store) else set()
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.ExceptHandler):
        return {node.name} - {None}
    if isinstance(node, ast.alias):
        return {(node.asname or node.name).split(".")[0]}
    return set()


def parameters(function) -> set[str]:
    """Returns the names of the parameters of a function."""
    args = function.args
    found = [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]
    return {arg.arg for arg in found if arg is not None}


def own_variables(function) -> dict[str, bool]:
    """Returns {variable of a function: whether one of its loops rebinds the variable}."""
    nodes = list(scope_nodes(function))
    # The variables of comprehensions live in scopes of their own, which end with the comprehension.
    targets = [part.target for node, _ in nodes if isinstance(node, COMPREHENSIONS) for part in node.generators]
    of_comprehensions = {id(name) for target in targets for name in ast.walk(target)}
    variables = dict.fromkeys(parameters(function), False)
    for node, in_loop in nodes:
        for name in names_bound_by(node):
            variables[name] = variables.get(name, False) or (in_loop and id(node) not in of_comprehensions)
    for node, _ in nodes:
        if isinstance(node, ast.Nonlocal | ast.Global):
            for name in node.names:
                variables.pop(name, None)
    return variables


def late_reads(source: str) -> list[tuple[int, str]]:
    """Returns (line, name) for each read of a variable that a loop of an enclosing function rebinds."""
    found = set()

    def visit(function, enclosing):
        variables = own_variables(function)
        for node, _ in scope_nodes(function):
            if isinstance(node, ast.Name) and node.id not in variables and enclosing.get(node.id):
                found.add((node.lineno, node.id))
            if isinstance(node, FUNCTIONS):
                visit(node, enclosing | variables)

    for node, _ in scope_nodes(ast.parse(source)):
        if isinstance(node, FUNCTIONS):
            visit(node, {})
    return sorted(found)


@pytest.mark.quick
def test_no_nested_function_reads_what_a_loop_rebinds():
    found = [
        f"{path.relative_to(ROOT)}:{line} reads {name}"
        for path in [ROOT / "main.py", *sources(*PACKAGES)]
        for line, name in late_reads(path.read_text(encoding="utf-8"))
    ]
    assert not found


FOUND = {
    "a function before the loop": """
        def f(states):
            def read():
                return state
            for state in states:
                read()
        """,
    "an assignment in a while loop": """
        def f():
            while True:
                value = next()
                g(lambda: value)
        """,
    "a lambda in a comprehension in a loop": """
        def f(rows):
            for row in rows:
                x = [lambda: row for _ in rows]
        """,
    "two functions deep": """
        def f(rows):
            def g():
                def h(): return row
            for a, (row, b) in rows: pass
        """,
    "a walrus and a with statement": """
        def f():
            while (line := read()):
                with open(line) as file: pass
            return lambda: (line, file)
        """,
}
ALLOWED = {
    "a default argument": """
        def f(rows):
            for row in rows:
                g(lambda row=row: row)
        """,
    "a parameter of the same name": """
        def f(rows):
            for row in rows:
                g(lambda row: row)
        """,
    "a variable of its own": """
        def f(rows):
            for row in rows:
                def g():
                    row = 1
                    return row
        """,
    "a variable bound outside of loops": """
        def f(rows):
            size = len(rows)
            for row in rows:
                g(lambda: size)
        """,
    "a comprehension": """
        def f(rows):
            for _ in rows:
                g(lambda: row, [row for row in rows])
        """,
    "a loop of the nested function": """
        def f(rows):
            def g():
                for row in rows:
                    use(row)
        """,
}


def reads(snippet: str) -> list[tuple[int, str]]:
    return late_reads("class Outer:\n" + snippet)


@pytest.mark.quick
@pytest.mark.parametrize("case", FOUND)
def test_a_late_read_is_found(case):
    assert reads(FOUND[case])


@pytest.mark.quick
@pytest.mark.parametrize("case", ALLOWED)
def test_other_reads_are_allowed(case):
    assert not reads(ALLOWED[case])
