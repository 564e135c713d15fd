"""One module per use case. Each change is one unit of work; each decision is the domain's."""
