"""The whole application on real sockets, once embedded and once on PostgreSQL and Valkey."""
