"""Texts: T5 and its adapters, tasks, objective, scoring of answers; mirrors `lib.vision`."""

from lib.runtime.index import index

__getattr__, __dir__, __all__ = index(
    __name__,
    {
        "activations": "diagonal_fisher prompt_grams",
        "examples": "Examples load_examples",
        "generation": "first_token_logits generate in_batches respond",
        "lora": "attach weight_change",
        "objective": "TokenObjective expert_answers",
        "registry": "TextTask text_task",
        "scoring": "score",
        "t5": "T5 load_t5",
        "tokens": "Tokenizer Tokens model_inputs tokenise",
        "training": "answer_accuracy token_loss",
    },
)
