"""Settings of all tests: shapes in annotations are checked, hypothesis draws the same examples everywhere."""

import jaxtyping
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

settings.register_profile("casebook", deadline=None, derandomize=True, database=None)
settings.load_profile("casebook")
# The tower lets an int stand where a float is annotated, as type checkers do.
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
install_import_hook(["casestudies_lib.models", "casestudies_lib.tasks"], CHECKER)


@pytest.fixture
def shapes_unchecked(monkeypatch):
    """Users run without the checker of the tests, which would otherwise answer before the library's own error."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
