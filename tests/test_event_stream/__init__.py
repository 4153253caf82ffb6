"""The event stream: one contract over memory and a real Valkey, and what only a real server can do to us."""
