"""Why a thing is allowed: rules, states, events, ports and use cases. Standard library only."""
