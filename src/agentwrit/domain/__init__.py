"""The rules of AgentWrit, without I/O, clock, randomness or logging. Time and random bytes are arguments.

Modules are named after the terms of their standards and imported individually. The package re-exports nothing, so
importing `agentwrit.domain.scope` loads only the standard library.
"""
