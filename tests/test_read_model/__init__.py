"""The read model keeps what it is told, in any order, and never answers from what may be out of date."""
