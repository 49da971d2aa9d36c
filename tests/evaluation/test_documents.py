"""Functions as documents: signatures, duplicates, modules that do not parse."""

import ast

import pytest

from codet5p_jax.data.corpora import stdlib
from codet5p_jax.data.corpora.python_functions import functions
from codet5p_jax.evaluation.documents import head, python_documents, source_documents, windows

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


def words(lines):
    """Tokens of each line, of a tokenizer that knows words and line breaks."""
    return [len(line.split()) + 1 for line in lines]


def test_windows_hold_every_line_once_and_are_not_too_long():
    lines = ["a", "", "b c", "\td \fe", "", "f", " ".join("ghijklmnop"), "q", "", ""]
    found = list(windows("\n".join(lines), words, room=8))
    assert found == [
        (1, "a\n\nb c"),  # ends where the next line would be too much
        (4, "\td \fe\n\nf"),
        (7, "g h i j k l m n o p"),  # too long, but a line
        (8, "q"),
    ]
    assert list(windows("\n \n", words, room=8)) == []
    assert list(windows("", words, room=8)) == []


def test_windows_end_before_a_blank_line():
    code = "f\n1\n2\n\ng\n3\n4\n"
    assert list(windows(code, words, room=9)) == [(1, "f\n1\n2"), (5, "g\n3\n4")]


def test_documents_of_source_files():
    files = [
        {"path": "m.py", "code": MODULE, "language": "python"},
        {"path": "old.py", "code": "print 'x'\n", "language": "python"},
        {"path": "data.py", "code": "A = 1\n", "language": "python"},
        {"path": "a/b.js", "code": "\nf = 1\n", "language": "javascript"},
        {"path": "copy.js", "code": "f = 1\n", "language": "javascript"},
    ]
    found = [each.document for each in source_documents(files, words, room=8)]
    assert [(d.module, d.line, d.name) for d in found] == [
        ("m.py", 2, "add"),
        ("m.py", 11, "C.same"),
        ("old.py", 1, ""),
        ("data.py", 1, ""),
        ("a/b.js", 2, ""),
    ]
    assert found[-1].signature == found[-1].code == "f = 1"


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
