"""Functions as documents: signatures, duplicates, modules that do not parse."""

import ast

import pytest

from codet5p_jax.data.corpora import stdlib
from codet5p_jax.data.corpora.python_functions import functions
from codet5p_jax.evaluation.documents import head, python_documents

MODULE = '''
def add(a,
        b: dict = {1: ":"}) -> int:
    """Add.

    Both of them.
    """
    return a + b

class C:
    @property
    def same(self): return 1

class D:
    @property
    def same(self): return 1
'''


def test_documents():
    modules = [{"module": "m", "code": MODULE}, {"module": "broken", "code": "def ("}]
    add, same = python_documents(modules)
    assert add.document.name == "add"
    assert add.document.line == 2
    assert add.document.summary == "Add."
    assert add.document.signature == 'def add(a, b: dict = {1: ":"}) -> int'
    assert '"""' not in add.document.code
    assert "Both of them" in add.words
    assert same.document.name == "C.same"
    assert same.document.signature == "def same(self)"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def f(): pass", "def f():"),
        ("@cache\ndef f(a,\n      b={1: 2}):\n    return a", "@cache\ndef f(a,\n      b={1: 2}):"),
        ('async def f(x=\':)\', y="\\":"):\n    pass', 'async def f(x=\':)\', y="\\":"):'),
        ("def f(g=lambda x: x) -> 'a:b':\n    pass", "def f(g=lambda x: x) -> 'a:b':"),
    ],
)
def test_head(code, expected):
    assert head(code) == expected


def test_heads_of_real_functions_are_whole():
    """The head with `pass` after it parses to the same signature."""
    checked = 0
    for module in list(stdlib.modules("test"))[:15]:
        for function in functions(module["code"]):
            whole = ast.parse(function.code).body[0]
            alone = ast.parse(head(function.code) + " pass").body[0]
            assert ast.dump(whole.args) == ast.dump(alone.args)
            checked += 1
    assert checked > 50
