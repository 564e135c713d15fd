"""The edge: bytes in, a service called, bytes out. Nothing is decided here."""
