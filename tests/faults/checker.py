"""The checker that every fault test shares: a run's evidence in, broken promises out.

How to use it:

    history = History()
    history.openings.append(await opening_of(database, concert_id))        # reading.py, before anybody buys
    buyer = RecordedBuyer(history, OverHttp([api]), user_id)                 # buyers.py; retries under the same key
    async with (
        sampled(database_url, [concert_id]) as samples,                    # reading.py, 20 looks a second
        recorded_count([api], concert_id) as recording,                    # streams.py, reconnects by itself
    ):
        ... book, pay, cancel, and break things ...
        await until_quiet(database)                                        # reading.py, how many seconds it took
        await up_to_date(recording, database)                              # streams.py, or patience ends
    evidence = Evidence(
        history=history,
        final=await read_final(database),
        ledger=ledger_of(await processor.ledger()),
        samples=samples,
        recordings=[recording],
        read_model=[line async for line in differences(read_model, source)],
    )
    assert_healthy(evidence, keep_in=tmp_path)                             # or: check(evidence) -> list[Violation]

Only concerts with an opening are judged, and everything that happened to those must be in the history: what the
organiser did too (`RecordedOrganiser`). `Evidence.load` reads what a failed run kept.
"""

from collections import defaultdict
from pathlib import Path

from tests.faults.checks.answers import check_answers, check_real_time
from tests.faults.checks.case import Case
from tests.faults.checks.money import check_money, check_settled
from tests.faults.checks.observers import check_read_model, check_recordings, check_samples
from tests.faults.evidence import Evidence
from tests.faults.rules import Rule, Violation
from tests.faults.timeline import violations_of

__all__ = ["Evidence", "Rule", "Violation", "assert_healthy", "check"]

# More of the same helps nobody.
SHOWN_MAX = 5


def check(evidence: Evidence) -> list[Violation]:
    """Every broken promise that the evidence shows; empty where something happened and all of it was right."""
    found: list[Violation] = []
    report = violations_of(found)
    if not evidence.history.openings:
        report(Rule.SOMETHING_HAPPENED, "no concert is judged")
    case = Case.of(evidence)
    case.replay(report)
    check_answers(case, report)
    check_real_time(case, report)
    check_settled(case, report)
    check_money(case, report)
    check_samples(case, report)
    check_recordings(case, report)
    check_read_model(case, report)
    return found


def assert_healthy(evidence: Evidence, *, keep_in: Path | None = None) -> None:
    """Nothing is broken. Raises: AssertionError with some of each kind; the evidence is kept in a file then."""
    found = check(evidence)
    if not found:
        return
    kept = ""
    if keep_in is not None:
        evidence.save(keep_in / "evidence.jsonl")
        kept = f"\nThe evidence is in {keep_in / 'evidence.jsonl'}"
    raise AssertionError(f"{len(found)} violations\n{shown(found)}{kept}")


def shown(found: list[Violation]) -> str:
    """The violations by rule, the first few of each."""
    by_rule: defaultdict[Rule, list[Violation]] = defaultdict(list)
    for violation in found:
        by_rule[violation.rule].append(violation)
    lines = []
    for rule, violations in by_rule.items():
        lines.append(f"{rule.name} ({rule.value}): {len(violations)}")
        lines += [f"  {violation.text}" for violation in violations[:SHOWN_MAX]]
    return "\n".join(lines)
