"""The ports (`base`) and their adapters. Only `agentwrit.broker.bootstrap` names an adapter."""
