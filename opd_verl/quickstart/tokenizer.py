"""Trains the quickstart's tokenizer: a byte-level BPE with Qwen's special tokens and a ChatML template.

A digit is always a token of its own: a column sum is then three lookups, and no token spans two numbers. Prompt and
response are encoded apart and their ids are joined, as in generation: training sees the ids that sampling sees.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import cast

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from opd_verl.quickstart.task import Addition, chat, problem_stream, question, solution

PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
PIECES = r"\p{N}| ?[^\s\p{N}]+|\s+"
"""The text is split into digits, words or runs of symbols with their leading space, and white space."""
LARGEST_VOCABULARY = 320
"""256 bytes, three special tokens, and the words of the task's text: 301 in all."""
CORPUS_PROBLEMS = 200

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def _corpus() -> list[str]:
    problems = islice(problem_stream("train", seed=0), CORPUS_PROBLEMS)
    return [f"system\nuser\nassistant\n{question(problem)}\n{solution(problem)}" for problem in problems]


def _train_bpe() -> Tokenizer:
    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=LARGEST_VOCABULARY,
        special_tokens=[PAD, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(), trainer)
    return bpe


def build_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """Trains the tokenizer and saves it to `directory`. Returns it as `AutoTokenizer` loads it from there."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_train_bpe(),
        pad_token=PAD,
        eos_token=TURN_END,
        additional_special_tokens=[TURN_START],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(directory)
    return AutoTokenizer.from_pretrained(directory)


def end_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """Returns the id of the token that ends a response."""
    assert isinstance(tokenizer.eos_token_id, int)
    return tokenizer.eos_token_id


def pad_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """Returns the id of the padding token."""
    assert isinstance(tokenizer.pad_token_id, int)
    return tokenizer.pad_token_id


def _encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)]


def encode_prompts(tokenizer: PreTrainedTokenizerFast, problems: Sequence[Addition]) -> list[list[int]]:
    """Returns the ids of each problem's chat prompt, up to and including the assistant's header."""
    texts = tokenizer.apply_chat_template([chat(p) for p in problems], add_generation_prompt=True, tokenize=False)
    return _encode(tokenizer, cast(list[str], texts))


def encode_responses(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Returns the ids of each response, closed by the end-of-turn token."""
    return [[*ids, end_id(tokenizer)] for ids in _encode(tokenizer, list(texts))]
