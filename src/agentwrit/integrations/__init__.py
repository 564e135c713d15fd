"""AgentWrit in other people's frameworks. Each is imported only by whoever imports its module."""
