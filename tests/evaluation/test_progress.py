"""The bar says how much is done, and stays out of files."""

from codet5p_jax.evaluation.progress import progress_bar


def test_in_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("programs", total=4) as done:
        done(1)
        done(2)
    told = capsys.readouterr().err
    assert "programs" in told
    assert "3/4" in told


def test_elsewhere(capsys):
    with progress_bar("programs", total=4) as done:
        done(4)
    assert capsys.readouterr() == ("", "")
