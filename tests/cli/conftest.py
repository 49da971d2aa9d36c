"""A library that is read in a moment, in the place of the standard one."""

import sys
from types import SimpleNamespace

import pytest

from codet5p_jax.cli import child
from codet5p_jax.data.corpora import stdlib
from codet5p_jax.data.corpora.files import split_of

VERBS = ("parse", "join", "sort", "count", "split", "check", "merge", "reverse")
NOUNS = ("date", "path", "table", "word", "line", "number", "header", "colour", "row", "price")
FUNCTION = '''
def {verb}_{noun}_{i}(values, limit=None):
    """{Verb} every {noun} of the values, the {i}th way.

    More about it.
    """
    found = [value.{verb}({i}) for value in values]
    if limit is not None:
        found = found[:limit]
    return found
'''


@pytest.fixture
def small_library(tmp_path, monkeypatch):
    """In the place of the standard library, here and in the processes of the quickstart."""
    folder = tmp_path / "library"
    folder.mkdir()
    missing = {"train": 4, "validation": 3, "test": 3}  # modules of each split
    for i in range(1000):
        split = split_of(f"module{i}", stdlib.SHARES)
        if missing[split]:
            missing[split] -= 1
            noun = NOUNS[sum(missing.values())]
            code = [FUNCTION.format(verb=v, Verb=v.title(), noun=noun, i=i) for v in VERBS]
            (folder / f"module{i}.py").write_text("\n".join(code))
    replace = f"stdlib.sysconfig = SimpleNamespace(get_path=lambda _: {str(folder)!r})"
    imports = "from types import SimpleNamespace; from codet5p_jax.data.corpora import stdlib"

    def codet5p(*arguments):
        command = f"from codet5p_jax.cli.main import main; raise SystemExit(main({arguments!r}))"
        return child.run([sys.executable, "-c", "; ".join([imports, replace, command])])

    monkeypatch.setattr(stdlib, "sysconfig", SimpleNamespace(get_path=lambda _: str(folder)))
    monkeypatch.setattr(child, "codet5p", codet5p)
