import pytest
from mirrors import make_mirror


@pytest.fixture
def root(tmp_path):
    """A mirror with one set, "pets"."""
    make_mirror(tmp_path / "root", "pets")
    return tmp_path / "root"
