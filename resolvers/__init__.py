"""How the schema is answered: who asks, then one use case or one read, then a schema type."""
