"""Any plain sequence-to-sequence task: the inputs and targets that its own preprocessors left."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from codet5p_jax.data.tokens import SpecialTokens
from codet5p_jax.objectives.base import Features
from codet5p_jax.objectives.rows import as_tokens
from codet5p_jax.objectives.teacher_forcing import TeacherForced


@dataclass(frozen=True, kw_only=True)
class Seq2Seq(TeacherForced):
    """Teacher forcing on `inputs` and `targets` as they are.

    No special token is added: whether targets end with `</s>` is the task's business. What does not
    fit is cut from the end, as SeqIO's feature converters do.

    Attributes:
      inputs_length, targets_length: S and T; T5's defaults.
      prompt_to_decoder: the decoder reads the inputs as well, without an `</s>` at their end; the
        loss is on the targets only, and T covers both. As the model's field of that name. Where
        an example has `inputs_and_targets`, both tokenised as one text, the decoder reads these
        instead; the first len(inputs) of them are no targets.
    """

    inputs_length: int = 512
    targets_length: int = 512
    prompt_to_decoder: bool = False

    name: ClassVar[str] = "seq2seq"

    def features(
        self, example: Mapping[str, np.ndarray], rng: np.random.Generator, special: SpecialTokens
    ) -> Features:
        """`inputs` and `targets` int32 [n], [m] -> the teacher-forced row."""
        del rng
        inputs, targets = as_tokens(example["inputs"]), as_tokens(example["targets"])
        prompt = None
        if self.prompt_to_decoder and "inputs_and_targets" in example:
            prompt, targets = np.split(as_tokens(example["inputs_and_targets"]), [len(inputs)])
            prompt = prompt[: self.inputs_length]
        elif self.prompt_to_decoder:
            prompt = inputs[: self.inputs_length]
            prompt = prompt[:-1] if prompt[-1:] == special.eos else prompt
        return self.row(inputs, targets, special, prompt)
