"""What gin files need to speak as T5X's do."""

from collections.abc import Mapping

from codet5p_jax.objectives.seq2seq import Seq2Seq


def seq2seq(
    task_feature_lengths: Mapping[str, int],
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    prompt_to_decoder: bool = False,
    keep_eos: bool = False,
) -> Seq2Seq:
    """The objective of plain SeqIO tasks at T5X's TASK_FEATURE_LENGTHS.

    >>> seq2seq({"inputs": 512, "targets": 128}).targets_length
    128

    Raises:
      ValueError: there are other features than `inputs` and `targets`.
    """
    if task_feature_lengths.keys() != {"inputs", "targets"}:
        raise ValueError(
            f"expected TASK_FEATURE_LENGTHS of inputs and targets, found {task_feature_lengths}"
        )
    return Seq2Seq(
        inputs_length=task_feature_lengths["inputs"],
        targets_length=task_feature_lengths["targets"],
        z_loss=z_loss,
        label_smoothing=label_smoothing,
        prompt_to_decoder=prompt_to_decoder,
        keep_eos=keep_eos,
    )
