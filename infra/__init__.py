"""With what Frontrow runs: database, Redis, broadcaster, card processor, HTTP application, command line."""
