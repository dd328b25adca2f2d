"""What the tests of fusion share: a small problem, and made-up statistics for the methods that need data.

With the statistics one test can run every registered method.
"""

import torch

from lib.vectors.layout import Layout


def problem(tasks=4, seed=0, dtype=torch.float64):
    """A matrix, a vector and a convolution kernel, with padding after each."""
    torch.manual_seed(seed)
    layout = Layout.of({"a": torch.zeros(3, 4), "b": torch.zeros(5), "c": torch.zeros(2, 3, 1, 1)}, block=5)
    inside = layout.inside().to(dtype)
    theta0 = torch.randn(layout.length, dtype=dtype) * inside
    return theta0, torch.randn(tasks, layout.length, dtype=dtype) * inside, layout


def extra(method, theta0, vectors, layout, order=None):
    """The keyword arguments that `method` needs beside theta0, task vectors and layout; {} if it needs none.

    With `order` (a permutation of the tasks) the statistics are permuted as `vectors[order]` is, so that
    `merge(theta0, vectors, layout, **extra(m, theta0, vectors, layout))` and
    `merge(theta0, vectors[order], layout, **extra(m, theta0, vectors[order], layout, order))` are the same problem.
    """
    tasks = len(vectors)
    order = torch.arange(tasks) if order is None else torch.as_tensor(order)
    random = torch.Generator().manual_seed(0)
    if method == "fisher_merging":
        fisher = torch.rand(tasks, layout.length, generator=random, dtype=torch.float64) * layout.inside()
        return {"fisher": fisher[order].to(theta0)}
    if method not in ("regmean", "regmean_plus_plus"):
        return {}
    grams = {}
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        if len(shape) == 2:
            inputs = torch.randn(tasks, 2 * shape[1], shape[1], generator=random, dtype=torch.float64)
            grams[name] = (inputs.mT @ inputs)[order].to(theta0)
    if method == "regmean":
        return {"grams": grams}

    def grams_at(task, theta, layers):
        """Depends on the point, as activations do: one more input, made of the first parameters."""
        inputs = {name: theta[: grams[name].shape[-1]] for name in layers if name in grams}
        return {name: grams[name][task] + torch.outer(row, row) for name, row in inputs.items()}

    return {"groups": [(name,) for name in layout.names], "grams_at": grams_at}
