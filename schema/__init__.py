"""What a client sees: types, inputs, unions and their descriptions. No I/O but through loaders.

One plain schema joins the modules, without Apollo Federation's directives and without strawberry's `relay.Node`:
the contract is then printed exactly, and `_entities`, which takes untyped and unbounded input, stays away.
"""
