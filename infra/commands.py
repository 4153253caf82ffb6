"""What the command line does besides serving: migrate, create an admin, verify, resume sales, rebuild, refund."""

import asyncio
from collections.abc import Callable

from domain.base import ConcertId
from domain.use_cases.halting import resume_sales
from domain.use_cases.settlement import retry_failed_refunds
from domain.use_cases.user import SignUp, create_admin
from infra.app import Frontrow, composed
from infra.db.invariants import broken
from infra.db.migrations import migrate
from infra.read_model import GenerationLost, Progress, differences, rebuild, redis_read_model
from infra.serving import CannotStart, prepare_database
from infra.settings import Settings

Say = Callable[[str], None]

FAILED_REFUNDS_SHOWN = 1_000
# Nobody waits for a page here.
PATIENCE_S = 10.0


async def migrate_database(settings: Settings, *, say: Say) -> None:
    """The tables are up to date."""
    await migrate(settings.database_url, progress=say)
    say("The database is up to date.")


async def create_admin_account(settings: Settings, *, email: str, name: str, password: str, say: Say) -> None:
    """Somebody may organise concerts. Raises: InvalidInput, EmailTaken."""
    await prepare_database(settings)
    async with composed(settings) as frontrow:
        admin = await create_admin(frontrow.deps, SignUp(email, password, name))
    say(f"{admin.email} may organise concerts now.")


async def verify(settings: Settings, *, say: Say) -> int:
    """How many promises are broken; each is said.

    The database is asked while the read model is compared: one keeps PostgreSQL busy, the other this process.
    """
    await prepare_database(settings)
    async with composed(settings) as frontrow:
        checks = [
            asyncio.create_task(_broken_promises(frontrow, say=say)),
            asyncio.create_task(_read_model_differences(frontrow, say=say)),
        ]
        try:
            counts = await asyncio.gather(*checks)
        finally:
            for check in checks:
                check.cancel()
            await asyncio.wait(checks)
    count = sum(counts)
    say("Every promise holds." if count == 0 else f"{count} promises are broken.")
    return count


async def _broken_promises(frontrow: Frontrow, *, say: Say) -> int:
    count = 0
    async for line in broken(frontrow.database, progress=say):
        say(f"BROKEN {line}")
        count += 1
    async with frontrow.deps.write("verify.halted") as unit:
        halted = await unit.sales.halted()
    for concert_id, since in halted.items():
        say(f"HALTED concert {concert_id} sells nothing since {since:%Y-%m-%d %H:%M:%S} UTC.")
    if halted:
        say("Once its stock is right, `frontrow resume-sales CONCERT_ID` lets a concert sell again.")
    return count


async def _read_model_differences(frontrow: Frontrow, *, say: Say) -> int:
    """Raises: CannotStart where Redis does not answer."""
    redis_url = frontrow.settings.redis_url
    if redis_url is None:
        return 0
    say("Checking: the read model equals the database (let writes stop first)")
    count = 0
    async with redis_read_model(redis_url, read_limit_s=PATIENCE_S) as read_model:
        try:
            async for line in differences(read_model, frontrow.source):
                say(f"BROKEN read model: {line}")
                count += 1
        except ConnectionError as error:
            raise CannotStart(
                f"Redis does not answer, so its read model was not compared: {error}"
            ) from error
    say("Compared: the read model")
    return count


async def resume_concert_sales(settings: Settings, concert_id: ConcertId, *, say: Say) -> int:
    """The concert sells again, or how much of its stock is still wrong; each is said. Raises: NotFound."""
    await prepare_database(settings)
    async with composed(settings) as frontrow:
        faults = await resume_sales(frontrow.deps, concert_id)
    for fault in faults:
        say(f"BROKEN {fault}")
    say("Its sales stay halted." if faults else f"Concert {concert_id} sells.")
    return len(faults)


async def rebuild_read_model(settings: Settings, *, say: Say) -> None:
    """The read model is complete. Raises: CannotStart."""
    if settings.redis_url is None:
        raise CannotStart("FRONTROW_REDIS_URL is empty: the read model in memory is rebuilt at every start.")
    await prepare_database(settings)

    def tell(progress: Progress) -> None:
        say(f"{progress.sales} concerts, {progress.buyers} buyers")

    async with composed(settings) as frontrow:
        try:
            is_done = await rebuild(frontrow.read_model, frontrow.source, tell)
        except ConnectionError as error:
            raise CannotStart(f"Redis does not answer: {error}") from error
        except GenerationLost as error:
            raise CannotStart("Redis was emptied or restarted meanwhile. Try again.") from error
    say("The read model is rebuilt." if is_done else "Somebody else is rebuilding it right now.")


async def failed_refunds(settings: Settings, *, is_retry: bool, say: Say) -> None:
    """Every failed refund is said, and asked for again where `is_retry`."""
    await prepare_database(settings)
    async with composed(settings) as frontrow:
        async with frontrow.deps.write("refunds.list") as unit:
            failed = await unit.payments.failed_refunds(limit=FAILED_REFUNDS_SHOWN)
        for payment in failed:
            amount = f"{payment.amount.amount_minor} {payment.amount.currency} (minor units)"
            say(f"{payment.id}  booking {payment.booking_id}  {payment.intent_id}  {amount}")
        if not failed:
            say("No refund has failed.")
        elif is_retry:
            retried = await retry_failed_refunds(frontrow.deps)
            say(f"{retried} refunds are asked for again; a worker sends them.")
        else:
            say(f"{len(failed)} refunds failed. `frontrow refunds --retry` asks for them again.")
