"""The stores, as tests of storage have them."""

from tests.storage.conftest import subject

__all__ = ["subject"]
