"""A local card processor: speaks the part of Stripe's API that Frontrow uses, and misbehaves when told to.

The twin of the real processor: the official `stripe` library runs against it over a real socket, so the code
that takes money is the code that tests run. It is for development and tests; production refuses it.

- `books`     what the processor remembers: intents, charges, refunds, stored answers
- `rules`     what may happen to an intent: create, confirm, authenticate, cancel
- `refunds`   what may happen to money once it was taken: refunds and disputes
- `wire`      Stripe's shapes: form parameters in, JSON objects and errors out
- `control`   the misbehaviour that `POST /_control` asks for
- `webhooks`  signed events, sent in the background
- `api`       the HTTP surface: keys, modes, one answer per Idempotency-Key, the pages below `/_`
- `server`    a server that can really close a connection without an answer
"""

from infra.sandbox.api import build_sandbox as build_sandbox
from infra.sandbox.server import running_sandbox as running_sandbox
