"""One module per use case. Each change is one unit of work, and the domain makes each decision."""
