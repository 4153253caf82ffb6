"""Promises kept under faults: processes killed, calls failing, connections cut. docs/reliability.md lists them."""
