"""One async function per intention. A use case opens one transaction at a time, and never awaits the processor
or Redis inside it.

Locks are taken in one order everywhere: booking rows by id, the idempotency key, the concert's sale row, its
ticket types by id, buyer rows by id. `book_concert` alone takes the key after the sale row; its keys are its own,
so no cycle can close.
"""
