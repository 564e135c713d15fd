import pytest

from tests.client import libraries
from tests.client.verifiers import make

__all__ = ["make"]


@pytest.fixture(params=libraries.ALL, ids=lambda get: get.__name__)
def get(request: pytest.FixtureRequest) -> libraries.Get:
    chosen: libraries.Get = request.param
    return chosen
