"""HumanEval as models tuned on instructions are asked: as the released script asks InstructCodeT5+.

Its prompt is not that of tuning: there is one empty line more, and the decoder is given the head of
the function besides.
"""

import numpy as np

from codet5p_jax.decoding.prompts import Prompt
from codet5p_jax.evaluation.benchmarks.base import Model

_INSTRUCTION = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n\n"
    "### Instruction:\nCreate a Python script for this problem:\n{}\n\n### Response:"
)


def instruction(prompt: str) -> str:
    """What is asked for a function's head and docstring: the docstring up to its examples.

    As in the released script, a prompt without examples loses its last character, and one without
    quotes begins with its third.

    >>> instruction('def f(x):\\n    \\"\\"\\"Adds\\n    one. >>> f(1)\\n    2').splitlines()[-3]
    'Adds one.'
    """
    text = prompt[prompt.find('"""') + 3 : prompt.find(">>>")]
    return _INSTRUCTION.format(" ".join(text.split()))


def instructed(model: Model, problem: str, asked: str, length: int) -> Prompt:
    """The instruction to the encoder, and what is to be continued to the decoder; after the
    instruction where the network has `prompt_to_decoder`, as InstructCodeT5+. What is too long
    loses its end.

    Args:
      problem: a function's head and docstring.
      asked: the same as the decoder is given it.
      length: tokens of each at most.
    """
    said = instruction(problem)
    before = said if model.network.config.prompt_to_decoder else ""
    ids = [model.tokenizer.encode(text)[:length] for text in (said, before + asked)]
    return Prompt(*(np.array(each, np.int32) for each in ids))
