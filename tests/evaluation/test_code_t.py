"""CodeT: the groups, their order, the chance of a right sample, and tests that run."""

import math

import numpy as np
import pytest

from codet5p_jax.evaluation import code_t
from codet5p_jax.evaluation.code_t import Group
from codet5p_jax.evaluation.sandbox.pool import LayerMissing, Sandbox

PASSED = np.array(
    [
        [1, 1, 0, 0],
        [0, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 1, 1],
        [1, 1, 1, 0],
    ],
    np.bool_,
)


def test_groups_in_the_order_of_their_scores():
    groups = code_t.agreement(PASSED)
    assert groups == [Group((4,), 3.0), Group((0, 2), 2 * math.sqrt(2)), Group((3,), 2.0)]
    assert code_t.ranking(groups, samples=5) == [4, 0, 2, 3, 1]


def test_tests_that_were_generated_several_times_count_as_often():
    groups = code_t.agreement(PASSED, np.array([1, 1, 1, 9]))
    assert groups[0] == Group((3,), 10.0)


def test_nothing_passes():
    assert code_t.agreement(np.zeros((3, 2), np.bool_)) == []
    assert code_t.ranking([], samples=3) == [0, 1, 2]


def test_chance_of_a_right_sample():
    groups = [Group((0, 1), 4.0), Group((2, 3, 4), 2.0)]
    correct = np.array([1, 0, 1, 0, 0, 1], np.bool_)  # the last is in no group
    chance = [code_t.reranked_pass_at_k([groups], [correct], k) for k in (1, 2, 3)]
    assert chance == pytest.approx([1 / 2, 1 - 1 / 2 * 2 / 3, 1 - (1 / 2) ** 2 * 2 / 3])
    # Groups of one score are one; where there is no group, samples are drawn from all.
    equal = [Group((0, 1), 4.0), Group((2, 3, 4), 4.0)]
    assert code_t.reranked_pass_at_k([equal, []], [correct, correct], 1) == pytest.approx(
        (2 / 5 + 1 / 2) / 2
    )


def test_assertions_of_a_generated_text():
    text = (
        "add(1, 2) == 3\n    assert add(\n        1, 1) == 2\n    assert sub(1, 1) == 0\n"
        "    assert add(1 == 2\n    assert add(0, 0) == 0\n\ndef f():\n    assert add(9, 9) == 18"
    )
    assert code_t.assertions(text, "add") == [
        "assert add(1, 2) == 3",
        "assert add(\n        1, 1) == 2",
        "assert add(0, 0) == 0",
        "assert add(9, 9) == 18",
    ]


def test_samples_and_tests_run():
    prompt = "def add(a, b):\n"
    samples = [
        "    return a + b\n",
        "    return a - b\n",
        "    while True: pass\n",
        "    return a - -b\n",
        "    import os; os._exit(0)\n",
        "    syntax error",
        "    class Any:\n        __eq__ = lambda self, other: 1 / 0\n    return Any()\n",
    ]
    tests = ["assert add(1, 2) == 3", "assert add(\n1, 0) == 1", "assert add(2, 2) == 5"]
    try:
        with Sandbox() as sandbox:
            outcomes = [
                sandbox.run(code_t.assertions_program(prompt, sample, tests, seconds=0.5))
                for sample in samples
            ]
    except LayerMissing as error:
        pytest.skip(str(error))
    passed = np.stack([code_t.passed_of(outcome, len(tests)) for outcome in outcomes])
    expected = [[1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert passed.tolist() == np.array(expected, np.bool_).tolist()
    assert code_t.agreement(passed)[0].samples == (0, 3)
