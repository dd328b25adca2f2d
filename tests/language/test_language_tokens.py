"""Token numbers: ends, padding, truncation, keys, and tokenizers that do not fit."""

import os

import pytest
import torch
from tokenizers import Tokenizer as Inner
from tokenizers import models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lib.language.examples import Examples
from lib.language.tokens import Tokenizer, tokenise
from lib.runtime.keys import content
from lib.runtime.store import Store

TEXTS = ["the dog runs", "the small dog runs in the park", "no", "the cat sleeps"]
EXAMPLES = Examples(tuple(TEXTS), ("yes", "no", "yes no", "0.5"))


def mini(*, pad="<pad>", eos="</s>", ends=True, special=("<pad>", "</s>", "<unk>")):
    """A word tokenizer in the form of T5's, trained on the spot."""
    inner = Inner(models.WordLevel(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.train_from_iterator(
        [*TEXTS, "yes"], trainers.WordLevelTrainer(special_tokens=list(special), show_progress=False)
    )
    if ends:
        inner.post_processor = processors.TemplateProcessing(
            single=f"$A {eos}", special_tokens=[(eos, special.index(eos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token=pad, eos_token=eos, unk_token="<unk>")


def make(examples=EXAMPLES, tokenizer=None, max_length=20):
    """`tokenise` with the arguments that do not matter filled in."""
    return tokenise(examples, Tokenizer(tokenizer or mini()), max_length=max_length)


def test_each_text_ends_and_is_padded_to_the_longest():
    tokenizer, made = mini(), make()
    assert made.inputs.dtype == made.targets.dtype == torch.int32
    assert made.inputs.shape == (4, 8) and made.targets.shape == (4, 3) and made.truncated == 0
    for row, text in zip(made.inputs, TEXTS, strict=True):
        ids = [*(tokenizer.convert_tokens_to_ids(word) for word in text.split()), 1]
        assert row.tolist() == ids + [0] * (8 - len(ids))
    assert made.targets[0].tolist() == [tokenizer.convert_tokens_to_ids("yes"), 1, -100]
    assert made.targets[2].tolist()[-1] == 1
    assert made.targets[3].tolist() == [tokenizer.unk_token_id, 1, -100]


def test_longer_prompts_are_cut_counted_and_still_end():
    whole, cut = make(), make(max_length=4)
    assert cut.inputs.shape == (4, 4) and cut.truncated == 1  # "the dog runs" and its end are just four
    assert torch.equal(cut.inputs[1, :3], whole.inputs[1, :3]) and cut.inputs[1, 3] == 1
    assert torch.equal(cut.inputs[[0, 2, 3]], whole.inputs[[0, 2, 3], :4])
    assert torch.equal(cut.targets, whole.targets)
    assert make(max_length=3).truncated == 3 and make(max_length=3).targets.shape == (4, 3)


@pytest.fixture
def remembered(tmp_path):
    """The same, but kept in a store; and how many results it has."""
    keep, folder = Store(tmp_path).remember(tokenise), tmp_path / "tokenise"

    def call(examples=EXAMPLES, tokenizer=None, max_length=20):
        return keep(examples, Tokenizer(tokenizer or mini()), max_length=max_length)

    return call, lambda: len(list(folder.iterdir()))


def test_the_second_time_comes_from_the_store(remembered):
    call, kept = remembered
    first, second = call(), call(tokenizer=mini())
    assert kept() == 1 and second.truncated == first.truncated and isinstance(second, type(make()))
    assert torch.equal(first.inputs, second.inputs) and torch.equal(first.targets, second.targets)
    assert torch.equal(first.inputs, make().inputs) and first.inputs.dtype == second.inputs.dtype == torch.int32
    assert call(max_length=4).truncated == call(max_length=4).truncated == 1
    assert kept() == 2


def test_the_store_knows_texts_targets_tokenizer_and_length(remembered):
    call, kept = remembered
    call()
    call(Examples(EXAMPLES.prompts[::-1], EXAMPLES.targets))
    call(Examples(EXAMPLES.prompts, EXAMPLES.targets[::-1]))
    call(tokenizer=mini(special=("<pad>", "</s>", "<unk>", "<more>")))
    call(max_length=19)
    assert kept() == 5


def test_the_key_of_a_tokenizer_does_not_change_with_its_use():
    tokenizer = mini()
    before = content(Tokenizer(tokenizer))
    tokenizer(TEXTS, padding=True, truncation=True, max_length=3)
    assert content(Tokenizer(tokenizer)) == before
    assert before != content(Tokenizer(mini(special=("<pad>", "</s>", "<unk>", "<more>"))))


def test_a_tokenizer_that_was_told_to_cut_and_pad_does_so_no_more():
    tokenizer = mini()
    tokenizer(TEXTS, padding="max_length", truncation=True, max_length=3)
    assert torch.equal(make(tokenizer=tokenizer).inputs, make().inputs)


def test_a_tokenizer_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"pads with token 2, expected 0 as T5's does"):
        make(tokenizer=mini(special=("<unk>", "</s>", "<pad>")))
    with pytest.raises(ValueError, match=r"pads with token None, expected 0"):
        make(tokenizer=mini(pad=None))
    with pytest.raises(ValueError, match=r"makes \[\] of an empty text, expected its end-of-text token \(1\) alone"):
        make(tokenizer=mini(ends=False))
    with pytest.raises(ValueError, match=r"str is no fast tokenizer"):
        make(tokenizer="t5-small")


def test_nothing_to_tokenise_and_no_room_are_errors():
    with pytest.raises(ValueError, match="no examples to tokenise"):
        make(Examples((), ()))
    with pytest.raises(ValueError, match="max_length is 1: expected at least 2"):
        make(max_length=1)


@pytest.mark.skipif(
    not os.environ.get("STUDY_T5_TOKENIZER"), reason="STUDY_T5_TOKENIZER names no folder of T5's tokenizer"
)
def test_the_real_t5_tokenizer_fits():
    tokenizer = AutoTokenizer.from_pretrained(os.environ["STUDY_T5_TOKENIZER"])
    words = ("acceptable", "unacceptable", "entailment", "neutral", "contradiction", "yes", "no", "3.8")
    prompts = tuple(f"Is '{word}' a word? " * 200 for word in words)
    made = make(Examples(prompts, words), tokenizer, max_length=512)
    assert made.inputs.shape == (8, 512) and made.truncated == 8 and torch.all(made.inputs[:, -1] == 1)
    assert torch.all(made.inputs != 0) and int(made.inputs.max()) < 32_100
    answers = tokenizer.batch_decode(made.targets.clamp(min=0), skip_special_tokens=True)
    assert tuple(answers) == words
