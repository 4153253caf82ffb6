"""One async function per intention. A use case opens one transaction at a time, and never awaits the processor
or Redis inside it.

Locks are taken in one order everywhere: booking rows by id, webhooks by id, the concert's sale row, its ticket types by
id, buyer rows by id, idempotency keys by name; rows of intents only under the lock of their booking. Payments take
their one key right after the booking, and what organisers do takes its own first of all; the keys of a mutation are
nobody else's, so no cycle can close.
"""
