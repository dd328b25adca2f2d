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
    if method == "featcal":
        return {"groups": [(name,) for name in layout.names], "moments_at": made_up_moments(tasks, layout, order)}
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


def moments(x, y):
    """What `read_moments` gives of inputs x and y [rows, in]: second moments of both with a column of ones."""
    x, y = (torch.nn.functional.pad(rows, (0, 1), value=1.0) for rows in (x, y))
    return torch.stack([x.T @ x, x.T @ y]) / len(x)


def made_up_moments(tasks, layout, order):
    """`moments_at` of inputs that depend on the points, as activations do; kernels have none."""
    random = torch.Generator().manual_seed(1)
    widths = {name: shape[-1] for name, shape in zip(layout.names, layout.shapes, strict=True) if len(shape) in (1, 2)}
    data = {name: torch.randn(tasks, 2 * n, n, generator=random, dtype=torch.float64) for name, n in widths.items()}

    def moments_at(task, merged, expert, layers):
        own = {name: data[name][order[task]] for name in layers if name in data}
        both = {name: (rows + point[: rows.shape[1]] for point in (merged, expert)) for name, rows in own.items()}
        return {name: moments(*rows).to(merged) for name, rows in both.items()}

    return moments_at
