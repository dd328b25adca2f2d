"""A very small T5 with random weights and a tokenizer of a few words, in the format of real checkpoints."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

WORDS = "acceptable unacceptable entailment neutral contradiction yes no negative positive a the dog cat runs run not"


def mini_tokenizer() -> PreTrainedTokenizerFast:
    """Words and digits; pad 0, end of text 1, unknown 2."""
    words = ["<pad>", "</s>", "<unk>", *WORDS.split(), *"0123456789.:/'?,"]
    backend = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def mini_t5(seed: int = 0) -> T5ForConditionalGeneration:
    """Two layers each way, width 16."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=48, d_model=16, d_kv=8, num_heads=2, num_layers=2, d_ff=32, dropout_rate=0.0,
        feed_forward_proj="gated-gelu", decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return T5ForConditionalGeneration(config).eval()


def save_mini_t5(folder, seed: int = 0):
    """Write both to a folder."""
    mini_t5(seed).save_pretrained(folder)
    mini_tokenizer().save_pretrained(folder)
    return folder
