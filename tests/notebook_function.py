"""Functions as a notebook defines them."""

import textwrap


def notebook(source, **names):
    """A function that is called `f`, as if it had been defined in a notebook that has some names already."""
    namespace = {"__name__": "__main__", **names}
    exec(textwrap.dedent(source), namespace)
    return namespace["f"]
