"""The real Stripe gateway against the real sandbox, and what each error means for the money."""
