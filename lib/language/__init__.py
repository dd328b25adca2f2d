"""Texts: T5 and its adapters, tasks, objective, scoring of answers; mirrors `lib.vision`."""

from lib.language.activations import diagonal_fisher, prompt_grams
from lib.language.examples import Examples, load_examples
from lib.language.generation import answer_accuracy, generate, in_batches, respond
from lib.language.lora import attach, weight_change
from lib.language.objective import TokenObjective, first_token_logits, model_inputs, token_loss
from lib.language.registry import TextTask, text_task
from lib.language.scoring import score
from lib.language.t5 import T5, load_t5
from lib.language.tokens import Tokenizer, Tokens, tokenise

__all__ = [
    "T5",
    "Examples",
    "TextTask",
    "TokenObjective",
    "Tokenizer",
    "Tokens",
    "answer_accuracy",
    "attach",
    "diagonal_fisher",
    "first_token_logits",
    "generate",
    "in_batches",
    "load_examples",
    "load_t5",
    "model_inputs",
    "prompt_grams",
    "respond",
    "score",
    "text_task",
    "token_loss",
    "tokenise",
    "weight_change",
]
