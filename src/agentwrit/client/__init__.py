"""The SDK. `steps` knows the protocol and does no I/O; drivers carry its requests."""
