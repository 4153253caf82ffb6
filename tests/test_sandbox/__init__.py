"""The sandbox processor over a real socket: Stripe's rules, and every way to misbehave."""
