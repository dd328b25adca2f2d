import pytest


@pytest.fixture(params=[1, 3], ids=["one seed", "three seeds"])
def seeds(request):
    return range(request.param)
