"""What can happen to a booking, by name, and the stories that chance alone would lead to too rarely."""

from collections.abc import Callable, Sequence

from tests.fake_processor import ACTION, DECLINED, OK
from tests.faults.foretold_shop import FAILURES, ForetoldShop
from tests.faults.shop_model import BookingModel, Chore, Fault

Act = Callable[[ForetoldShop, BookingModel], None]


def paying(method: str = OK, fault: Fault = Fault.NONE) -> Act:
    """Its owner pays so."""
    return lambda shop, booking: shop.pay(booking, method, fault)


ACTS: dict[str, Act] = {
    "pay": paying(),
    "pay with a bad card": paying(DECLINED),
    "pay with a card whose bank asks": paying(ACTION),
    "pay with no card": paying("pm_of_nobody"),
    **{f"pay, {fault.value}": paying(fault=fault) for fault in FAILURES},
    "cancel": lambda shop, booking: shop.cancel(booking),
    "book again": lambda shop, booking: shop.book_again(booking),
    "rivals take the rest": lambda shop, booking: shop.rivals_take_the_rest(booking),
    "hold passes": lambda shop, booking: shop.let_hold_pass(booking),
    "expire": lambda shop, booking: shop.expire(booking),
    "reconcile": lambda shop, booking: shop.reconcile(booking),
    "reconcile in vain": lambda shop, booking: shop.reconcile(booking, is_lost=True),
    "chores": lambda shop, booking: shop.do_chores(booking),
    "chores, lost": lambda shop, booking: shop.do_chores(booking, Chore.LOST),
    "chores, refused": lambda shop, booking: shop.do_chores(booking, Chore.REFUSED),
    "retry refunds": lambda shop, booking: shop.retry_refunds(booking),
    "authenticate": lambda shop, booking: shop.authenticate(booking),
    "fail to authenticate": lambda shop, booking: shop.authenticate(booking, succeeds=False),
    "refund by hand": lambda shop, booking: shop.refund_by_hand(booking),
    "dispute": lambda shop, booking: shop.dispute(booking),
    "hear": lambda shop, booking: shop.hear(booking),
    "hear again": lambda shop, booking: shop.hear(booking, is_new=False),
    "refund comes back": lambda shop, booking: shop.fail_refund(booking),
}

ASKED_BY_THE_BANK = "pay with a card whose bank asks"
STORIES: dict[str, tuple[str, ...]] = {
    "late money": (ASKED_BY_THE_BANK, "hold passes", "expire", "authenticate", "hear"),
    "late money, seats gone": (
        *(ASKED_BY_THE_BANK, "hold passes", "expire"),
        *("rivals take the rest", "authenticate", "reconcile", "chores"),
    ),
    "late money, limit reached": (
        *(ASKED_BY_THE_BANK, "hold passes", "expire"),
        *("book again", "book again", "authenticate", "hear", "chores"),
    ),
    "money after the end": ("pay, done and lost", "cancel", "reconcile", "chores"),
    "nobody pays any more": ("pay, not sent", "cancel", "chores"),
    "no time left": (*("pay, lost", "hold passes", "reconcile") * 2, "expire"),
    "declined before": ("pay with a bad card", "pay, lost", "hear", "reconcile"),
    "the bank says no": (ASKED_BY_THE_BANK, "fail to authenticate", "hear"),
    "old news": (ASKED_BY_THE_BANK, "hear", "authenticate", "hear again"),
    "old news of a refund": ("pay", "cancel", "chores", "refund comes back", "dispute", "hear again"),
    "refund fails late": ("pay", "cancel", "chores", "refund comes back", "retry refunds", "chores"),
}


def live_through(shop: ForetoldShop, which: int, names: Sequence[str]) -> None:
    """These acts and stories happen to one open booking, one after the other; after each all is as foretold."""
    booking = shop.open_booking(which)
    for name in names:
        for act in STORIES.get(name, (name,)):
            ACTS[act](shop, booking)
            shop.compare()
