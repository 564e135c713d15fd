"""The broker: an HTTP service over a store, assembled in `bootstrap`."""
