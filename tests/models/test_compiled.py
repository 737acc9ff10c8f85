"""What kernels may not do, as nothing would tell: Numba frees an array once its name is last used, address or not."""

import ast
from pathlib import Path

import pytest

import ulmfit.models

FILES = sorted(Path(ulmfit.models.__file__).parent.glob("*.py"))
NUMBERS = {"int64", "float32"}


def kernels(tree):
    """Functions that Numba compiles."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            decorators = {decorator.id for decorator in node.decorator_list if isinstance(decorator, ast.Name)}
            if decorators & {"kernel", "part"}:
                yield node


def makes_an_array(value):
    return (
        isinstance(value, ast.Call)
        and isinstance(value.func, ast.Attribute)
        and (value.func.attr == "copy" or (ast.unparse(value.func.value) == "np" and value.func.attr not in NUMBERS))
    )


def addressed_of_own(function):
    """Names of arrays that a function makes and takes the address of."""
    made = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = list(zip(target.elts, node.value.elts, strict=True))
                made |= {name.id for name, value in pairs if isinstance(name, ast.Name) and makes_an_array(value)}
    addressed = {
        ast.unparse(node.value)
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and node.attr == "ctypes"
    }
    return made & addressed


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_kernel_takes_the_address_of_no_array_that_it_made(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [f"{found.name}: {addressed_of_own(found)}" for found in kernels(tree) if addressed_of_own(found)] == []


def test_such_a_kernel_would_be_found():
    source = "@kernel\ndef add(out):\n    space, other = np.empty(4), out\n    go(space.ctypes.data, other.ctypes.data)"
    (found,) = kernels(ast.parse(source))
    assert addressed_of_own(found) == {"space"}
