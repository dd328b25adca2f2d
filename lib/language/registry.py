"""The text-to-text tasks that the study knows: the eight of GLUE and, for each, a drawn one of the same form."""

from __future__ import annotations

from dataclasses import dataclass

from lib.runtime.parameters import closest

HIGHEST = 5.0  # similarity is graded from 0 to this


@dataclass(frozen=True)
class TextTask:
    """A task whose rows become a prompt and a target text.

    Attributes:
        name: as parameters and tables name it.
        title: as figures name it.
        columns: the text columns of a row.
        prompt: format string over the columns.
        words: label words in the order of the labels; () for a graded task, whose label is a number from 0 to 5.
        glue: the configuration of nyu-mll/glue; "" for a drawn task.
        held_out: its labelled file that is not for training.
        classes: what that file's ClassLabel calls the labels, in their order; () where there are no classes.
        train: rows of the official training file.
        test: rows of the official held-out file.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    prompt: str
    words: tuple[str, ...]
    glue: str = ""
    held_out: str = "validation"
    classes: tuple[str, ...] = ()
    train: int = 0
    test: int = 0

    @property
    def metric(self) -> str:
        """How the task is scored: "accuracy", or "Spearman's rho" for a graded one."""
        return "accuracy" if self.words else "Spearman's rho"

    def target(self, label: int | float) -> str:
        """The text to answer: the label's word, or the grade with one decimal.

        Raises:
            ValueError: if there is no such label.
        """
        if isinstance(label, (int, float)):
            if not self.words and 0 <= label <= HIGHEST:
                return f"{label:.1f}"
            if self.words and label in range(len(self.words)):
                return self.words[int(label)]
        raise ValueError(f"label {label!r} is {self._labels}")

    @property
    def _labels(self) -> str:
        last = len(self.words) - 1
        return f"not one of the {last + 1} classes (0 to {last})" if self.words else "no number from 0 to 5"


SENTENCE, PAIR, QUESTIONS = ("sentence",), ("sentence1", "sentence2"), ("question1", "question2")
NLI, QNLI = ("premise", "hypothesis"), ("question", "sentence")
ACCEPTABLE, RELATION = ("unacceptable", "acceptable"), ("entailment", "neutral", "contradiction")
NO_YES, YES_NO, SENTIMENT = ("no", "yes"), ("yes", "no"), ("negative", "positive")
ENTAILED = ("entailment", "not_entailment")

# Prompts and label words are those of the authors, letter by letter ("Answere" and a scale "from 1" included):
# https://github.com/tanganke/fusion_bench, fusion_bench/tasks/flan_t5_text_generation/glue_prompt_templates.py.
# Rows are those of https://huggingface.co/datasets/nyu-mll/glue; MNLI is scored on its matched half.
GLUE: dict[str, TextTask] = {
    task.name: task
    for task in (
        TextTask(
            "cola",
            "CoLA",
            SENTENCE,
            'Indicate if the following sentence is grammatically correct or not: "{sentence}". '
            "Answere 'acceptable' or 'unacceptable'.",
            ACCEPTABLE,
            glue="cola",
            classes=ACCEPTABLE,
            train=8_551,
            test=1_043,
        ),
        TextTask(
            "mnli",
            "MNLI",
            NLI,
            "Does the premise: '{premise}' logically imply, contradict, or is neutral to the hypothesis: "
            "'{hypothesis}'? Answere with 'entailment', 'contradiction', or 'neutral'.",
            RELATION,
            glue="mnli",
            held_out="validation_matched",
            classes=RELATION,
            train=392_702,
            test=9_815,
        ),
        TextTask(
            "mrpc",
            "MRPC",
            PAIR,
            "Are the following sentences '{sentence1}' and '{sentence2}' conveying the same meaning? "
            "Answere with 'yes' or 'no'.",
            NO_YES,
            glue="mrpc",
            classes=("not_equivalent", "equivalent"),
            train=3_668,
            test=408,
        ),
        TextTask(
            "qnli",
            "QNLI",
            QNLI,
            "Given the context: '{sentence}', does the question '{question}' have an answer based on the information "
            "provided? Answer with 'yes' or 'no'.",
            YES_NO,
            glue="qnli",
            classes=ENTAILED,
            train=104_743,
            test=5_463,
        ),
        TextTask(
            "qqp",
            "QQP",
            QUESTIONS,
            "Do the questions '{question1}' and '{question2}' have the same intent? Answere with 'yes' or 'no'.",
            NO_YES,
            glue="qqp",
            classes=("not_duplicate", "duplicate"),
            train=363_846,
            test=40_430,
        ),
        TextTask(
            "rte",
            "RTE",
            PAIR,
            "Does the text: '{sentence1}' entail that '{sentence2}' is true? Provide 'yes' or 'no'.",
            YES_NO,
            glue="rte",
            classes=ENTAILED,
            train=2_490,
            test=277,
        ),
        TextTask(
            "sst2",
            "SST-2",
            SENTENCE,
            "Given the sentence '{sentence}', determine the sentiment. Is it positive or negative?",
            SENTIMENT,
            glue="sst2",
            classes=SENTIMENT,
            train=67_349,
            test=872,
        ),
        TextTask(
            "stsb",
            "STS-B",
            PAIR,
            "Consider the sentences '{sentence1}' and '{sentence2}'. On a scale from 1 (completely different) to 5 "
            "(completely similar), rate the similarity.",
            (),
            glue="stsb",
            train=5_749,
            test=1_500,
        ),
    )
}
# The same columns and labels in the same order of tasks; prompts are short because every token costs time.
DRAWN: dict[str, TextTask] = {
    task.name: task
    for task in (
        TextTask("acceptability", "Acceptability", SENTENCE, "acceptable: {sentence}", ACCEPTABLE),
        TextTask("inference", "Inference", NLI, "relation: {premise} / {hypothesis}", RELATION),
        TextTask("paraphrases", "Paraphrases", PAIR, "same meaning: {sentence1} / {sentence2}", NO_YES),
        TextTask("answering", "Answering", QNLI, "answered: {question} / {sentence}", YES_NO),
        TextTask("duplicates", "Duplicates", QUESTIONS, "same question: {question1} / {question2}", NO_YES),
        TextTask("entailment", "Entailment", PAIR, "follows: {sentence1} / {sentence2}", YES_NO),
        TextTask("sentiment", "Sentiment", SENTENCE, "sentiment: {sentence}", SENTIMENT),
        TextTask("similarity", "Similarity", PAIR, "similarity: {sentence1} / {sentence2}", ()),
    )
}


def text_task(name: str) -> TextTask:
    """Look up a task by name.

    Raises:
        ValueError: naming the closest one and all that there are.
    """
    known = DRAWN | GLUE
    if name not in known:
        hint = closest(name, tuple(known))
        raise ValueError(f"unknown task '{name}'{hint}; drawn: {', '.join(DRAWN)}; GLUE: {', '.join(GLUE)}")
    return known[name]
