"""The rules of AgentWrit, without I/O, clock, randomness or logging: time and random bytes are arguments.

Modules are named by the term their standard uses and imported one by one; this package re-exports nothing,
so that `agentwrit.domain.scope` costs the standard library alone.
"""
