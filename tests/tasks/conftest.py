import pytest

from codet5p_jax.data.tokenizer import train_tokenizer

VARIABLES = (
    "TOKENIZER",
    "GITHUB_CODE_DIR",
    "CODESEARCHNET_DIR",
    "EXCLUDED_REPOS",
    "FINETUNE_DIR",
    "INSTRUCT_DIR",
    "INSTRUCT_TEMPLATES",
    "INSTRUCT_HELD_OUT",
    "MAX_MALFORMED_SHARE",
    "CODE_SEPARATOR",
)


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    """No setting of the shell, and none of a test, reaches another test."""
    for name in VARIABLES:
        monkeypatch.setenv(f"CODET5P_{name}", "")  # so that what `configure` sets is undone


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = ["def f(x, y):\n    return x + y\n", "the sum of two numbers", "class A: pass\n"]
    train_tokenizer(texts * 3, 500, folder)
    return folder
