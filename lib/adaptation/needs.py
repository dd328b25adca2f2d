"""What a phase of adaptation needs of memory: from the sizes of model, tasks and batch to bytes.

The Snakefile asks as well: no torch here.
"""

from dataclasses import dataclass

FLOAT = 4  # bytes
VECTOR_BYTES = {"fp32": 4, "bf16": 2, "mapped": 4}  # of an element of a task vector
# What a pass holds beside what autograd keeps: gradients on their way back, gaps between blocks of memory.
PASSING = 1.3
DRAWING = 5  # vectors of length D at once while the final mask is drawn, when the activations are gone


@dataclass(frozen=True)
class Needs:
    """What the memory of a phase follows from.

    Attributes:
        parameters: D.
        tasks: T.
        rows: inputs of all tasks in a step.
        rows_at_once: of them, how many go through the model together.
        row_bytes: what autograd keeps for one input.
        input_bytes: one input as the model reads it.
        copies_bytes: what autograd keeps however many inputs there are: the weights in bfloat16 under autocast.
        frozen_bytes: parts of the model that are not merged, such as a text tower.
        learn_mask, coefficients: whether logits of a mask are learned, with Adam's moments, and merging coefficients.
        fixed_mask, exact: whether all happens inside a mask learned before, and whether the hypergradient is exact.
        vectors: "fp32", "bf16" or "mapped".
        accelerator: whether the device is not the CPU.
        processes: how many share mask, moments and task vectors (`lib.concrete.sharding`); rows are those of this one.
    """

    parameters: int
    tasks: int
    rows: int
    rows_at_once: int
    row_bytes: int
    input_bytes: int = 0
    copies_bytes: int = 0
    frozen_bytes: int = 0
    learn_mask: bool = False
    coefficients: bool = True
    fixed_mask: bool = False
    exact: bool = False
    vectors: str = "fp32"
    accelerator: bool = False
    processes: int = 1


def plan(needs: Needs) -> dict[str, int]:
    """Bytes per part on the device that computes; the phase needs their sum.

    Pages of a mapped file are not counted on a CPU: the system drops them when memory is short. An accelerator holds
    one task vector of them at a time.
    """
    vector, own = FLOAT * needs.parameters, FLOAT * -(-needs.parameters // needs.processes)
    stacked = VECTOR_BYTES[needs.vectors] * own // FLOAT * needs.tasks
    if needs.vectors == "mapped":
        stacked = vector * needs.accelerator
    activations = round(PASSING * needs.row_bytes * min(needs.rows, needs.rows_at_once)) + needs.copies_bytes
    inputs = needs.input_bytes * needs.rows * (1 + (needs.learn_mask and needs.coefficients))  # two levels, two batches
    parts = {
        "task vectors": stacked,
        "their sum": own * (not needs.coefficients and needs.tasks > 1),
        "theta0, merged model and gradient": 3 * vector,
        "mask logits and moments": 3 * own * needs.learn_mask,
        "mask": own * needs.fixed_mask,
        "exact hypergradient": (6 * vector + 2 * activations) * needs.exact,  # the graph of the first backward pass
        "frozen parts": needs.frozen_bytes,
        "inputs": inputs,
        f"activations of {min(needs.rows, needs.rows_at_once)} inputs": activations,
        "drawing the mask": max(0, DRAWING * vector - activations - inputs) * needs.learn_mask,
    }
    return {name: size for name, size in parts.items() if size}
