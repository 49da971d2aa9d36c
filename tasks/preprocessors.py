"""SeqIO preprocessors that make cached examples (docs/architecture.md, 3.3) out of text."""

import numpy as np
import tensorflow as tf

from codet5p_jax.data.corpora.finetuning.completion import LINE_END
from codet5p_jax.data.corpora.finetuning.retrieved import encode_source, separator
from codet5p_jax.data.vocab import CodeVocabulary

# AutoGraph has nothing to convert here, and warns where it finds no source.
_plain = tf.autograph.experimental.do_not_convert


def tokenize_code(dataset: tf.data.Dataset, *, vocabulary: CodeVocabulary) -> tf.data.Dataset:
    """`code` string -> `tokens` int32 [n], `word_starts` bool [n]; other features are dropped."""
    _ = vocabulary.tokenizer  # where there is none, better say so here than from within TensorFlow

    @_plain
    def tokenize(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        tokens, starts = vocabulary.encode_words_tf(example["code"])
        return {"tokens": tokens, "word_starts": starts}

    return dataset.map(tokenize, num_parallel_calls=tf.data.AUTOTUNE)


def keep_lengths(dataset: tf.data.Dataset, *, shortest: int, longest: int) -> tf.data.Dataset:
    """Drops files with fewer or more tokens, both limits inclusive."""

    @_plain
    def fits(example: dict[str, tf.Tensor]) -> tf.Tensor:
        size = tf.size(example["tokens"])
        return (size >= shortest) & (size <= longest)

    return dataset.filter(fits)


def cut_into_chunks(dataset: tf.data.Dataset, *, length: int) -> tf.data.Dataset:
    """Joins files end to end and cuts every `length` tokens (paper §4); the last chunk is shorter.

    With length 3, files `[1 2] [3 4 5] [6 7]` become `[1 2 3] [4 5 6] [7]`. No token stands
    between files. A word that is cut counts as a word in both chunks.
    """

    @_plain
    def begin_a_word(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        starts = tf.concat([[True], example["word_starts"][1:]], axis=0)
        return {**example, "word_starts": starts}

    return dataset.rebatch(length).map(begin_a_word)


def tokenize_pair(dataset: tf.data.Dataset, *, vocabulary: CodeVocabulary) -> tf.data.Dataset:
    """`text` and `code` strings -> the same as int32 vectors; other features are dropped."""
    _ = vocabulary.tokenizer  # where there is none, better say so here than from within TensorFlow

    @_plain
    def tokenize(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {name: vocabulary.encode_tf(example[name]) for name in ("text", "code")}

    return dataset.map(tokenize, num_parallel_calls=tf.data.AUTOTUNE)


def tokenize_seq2seq(dataset: tf.data.Dataset, *, vocabulary: CodeVocabulary) -> tf.data.Dataset:
    """`source` and `target` strings -> `inputs` and `targets`, int32 vectors `<s> … </s>`, as the
    tokenizer of CodeT5 encodes both in its tuning scripts."""
    bos, eos = vocabulary.bos_id, vocabulary.eos_id

    @_plain
    def tokenize(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {
            name: tf.concat([[bos], vocabulary.encode_tf(example[text]), [eos]], axis=0)
            for name, text in (("inputs", "source"), ("targets", "target"))
        }

    return dataset.map(tokenize, num_parallel_calls=tf.data.AUTOTUNE)


def tokenize_retrieved(dataset: tf.data.Dataset, *, vocabulary: CodeVocabulary) -> tf.data.Dataset:
    """As `tokenize_seq2seq`, with [SEP] between the lines of `source`: the text, and code."""
    tokenizer, bos, eos = vocabulary.tokenizer, vocabulary.bos_id, vocabulary.eos_id
    between = separator()

    def encode(source: bytes) -> np.ndarray:
        return np.asarray(encode_source(source.decode(), tokenizer.encode, eos, between), np.int32)

    @_plain
    def tokenize(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        inputs = tf.numpy_function(encode, [example["source"]], tf.int32)
        inputs.set_shape([None])
        targets = vocabulary.encode_tf(example["target"])
        ids = {"inputs": inputs, "targets": targets}
        return {name: tf.concat([[bos], row, [eos]], axis=0) for name, row in ids.items()}

    return dataset.map(tokenize, num_parallel_calls=tf.data.AUTOTUNE)


def tokenize_lines(
    dataset: tf.data.Dataset, *, vocabulary: CodeVocabulary, mark: str = LINE_END
) -> tf.data.Dataset:
    """`code` string whose lines end in a word `mark` -> `tokens` int32 [n], `</s>` for each mark.

    The last line has none: the objective ends a file with `</s>`. The words around a mark lose
    their space, as with the tokenizer of UniXcoder's script.
    """
    tokenizer, eos = vocabulary.tokenizer, vocabulary.eos_id

    def encode(code: bytes) -> np.ndarray:
        text = code.decode().strip().removesuffix(mark)
        tokens: list[int] = []
        for line in text.split(mark):
            tokens += [*tokenizer.encode(line.strip()), eos]
        return np.asarray(tokens[:-1], np.int32)

    @_plain
    def tokenize(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        tokens = tf.numpy_function(encode, [example["code"]], tf.int32)
        tokens.set_shape([None])
        return {"tokens": tokens}

    return dataset.map(tokenize, num_parallel_calls=tf.data.AUTOTUNE)


def tokenize_labelled(dataset: tf.data.Dataset, *, vocabulary: CodeVocabulary) -> tf.data.Dataset:
    """`code` (and `other`) strings -> the same as int32 vectors; `label` stays."""
    _ = vocabulary.tokenizer  # where there is none, better say so here than from within TensorFlow

    @_plain
    def tokenize(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        texts = example.keys() & {"code", "other"}
        return {**example, **{name: vocabulary.encode_tf(example[name]) for name in sorted(texts)}}

    return dataset.map(tokenize, num_parallel_calls=tf.data.AUTOTUNE)


def tokenize_instruction(
    dataset: tf.data.Dataset, *, vocabulary: CodeVocabulary
) -> tf.data.Dataset:
    """`prompt` and `response` strings -> `inputs`, `targets`, `inputs_and_targets`, int32 vectors.

    `inputs` has no special tokens, the others end in `</s>`. `inputs_and_targets` is prompt and
    response tokenised as one text, as for InstructCodeT5+: where the response begins with a sign,
    as in `Response:[1]`, a token may span the border.
    """
    eos = vocabulary.eos_id

    @_plain
    def tokenize(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        prompt, response = example["prompt"], example["response"]

        def closed(text: tf.Tensor) -> tf.Tensor:
            return tf.concat([vocabulary.encode_tf(text), [eos]], axis=0)

        return {
            "inputs": vocabulary.encode_tf(prompt),
            "targets": closed(response),
            "inputs_and_targets": closed(tf.strings.join([prompt, response])),
        }

    return dataset.map(tokenize, num_parallel_calls=tf.data.AUTOTUNE)
