"""Stop texts found in the bytes of tokens, against searching the text itself."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codet5p_jax.decoding.stop import advance, cut, has_stopped, stop_table

letters = st.text("ab", min_size=1, max_size=4)


@given(
    texts=st.lists(letters, min_size=1, max_size=3),
    vocabulary=st.lists(letters, min_size=1, max_size=6),
    written=st.lists(st.integers(0, 5), max_size=12),
)
def test_it_stops_in_the_token_that_completes_a_text(texts, vocabulary, written):
    token_bytes = {i: text.encode() for i, text in enumerate(vocabulary)}
    table = stop_table(texts, token_bytes, 8)  # ids 6 and 7 have no bytes
    state, text = np.int32(0), ""
    for token in written:
        state = table[state, token]
        text += vocabulary[token] if token < len(vocabulary) else ""
        stopped = state == len(table) - 1
        assert bool(stopped) == any(stop in text for stop in texts)


def test_rows_go_on_by_themselves():
    table = stop_table(["\ndef", "\nclass"], {0: b"x\nd", 1: b"ef f", 2: b"\n\ncla", 3: b"ss"}, 5)
    table, state = jnp.asarray(table), jnp.zeros((1, 2), jnp.int32)
    for tokens in ([0, 2], [1, 4], [1, 3]):
        state = advance(table, state, jnp.array([tokens]))
    assert np.asarray(has_stopped(table, state)).tolist() == [[True, True]]
    assert cut("x\ndef f", ["\ndef", "\nclass"]) == "x"
    assert cut("x", ["\ndef"]) == "x"


@pytest.mark.parametrize("texts", [[], [""], ["a", ""]])
def test_empty_texts_are_an_error(texts):
    with pytest.raises(ValueError, match="stop texts of one byte or more"):
        stop_table(texts, {}, 4)
