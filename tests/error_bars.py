"""What error bars show, read off a drawn figure."""


def dots(axes, which):
    """The places of the error bars' dots along one axis."""
    return [value for container in axes.containers for value in getattr(container[0], f"get_{which}data")()]
