"""The SDK. `steps` implements the protocol without I/O; the drivers carry out its requests."""
