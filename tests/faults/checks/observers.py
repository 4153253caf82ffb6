"""What others saw meanwhile: looks at the stock, subscribers, the read model."""

from collections import defaultdict

from tests.faults.checks.case import Case
from tests.faults.history import Heard, Mark, Recording, Sample, StockRow
from tests.faults.rules import Rule
from tests.faults.timeline import Report


def check_samples(case: Case, report: Report) -> None:
    """Every look shows a state that there was, and a later one no older state."""
    samples = [sample for sample in case.evidence.samples or () if sample.concert_id in case.judged]
    if case.evidence.samples is not None and not samples:
        report(Rule.SOMETHING_HAPPENED, "nobody looked at the stock of a concert that is judged")
    for sample in samples:
        for row in sample.stock:
            if min(row.held, row.sold, row.capacity - row.held - row.sold) < 0:
                report(Rule.CONSERVATION, f"version {sample.version} of {sample.concert_id} was {row}")
            if row.counted_held is not None and (row.held, row.sold) != (row.counted_held, row.counted_sold):
                report(Rule.COUNTERS, f"version {sample.version} of {sample.concert_id} was {row}")
        _check_state(case, sample, report)
    newest: defaultdict[str, int] = defaultdict(int)
    for sample in sorted(samples, key=lambda sample: sample.began_s):
        if sample.version < newest[sample.concert_id]:
            report(
                Rule.CONSERVATION,
                f"{sample.concert_id} went back from {newest[sample.concert_id]} to {sample.version}",
            )
        newest[sample.concert_id] = max(sample.version, newest[sample.concert_id])


def _check_state(case: Case, sample: Sample, report: Report) -> None:
    state = case.timelines[sample.concert_id].at_version(sample.version)
    seen = _stock(sample.stock)
    if state is None or seen != state.stock:
        was = "never was" if state is None else f"was {state.stock}"
        report(
            Rule.CONSERVATION, f"version {sample.version} of {sample.concert_id} {was}, a look showed {seen}"
        )


def check_recordings(case: Case, report: Report) -> None:
    """Each subscriber heard states that there were, in order, and the newest in the end."""
    newest = {sale.concert_id: sale.version for sale in case.evidence.final.sales}
    newest |= {booking.booking_id: booking.version for booking in case.evidence.final.bookings}
    for recording in case.evidence.recordings:
        _check_order(recording, report)
        _check_backlog(case, recording, report)
        for entry in recording.entries:
            if entry.mark is None:
                _check_payload(case, recording, entry, report)
        heard = recording.versions
        for subject_id in recording.subject_ids:
            if subject_id not in heard:
                report(Rule.STREAM_SILENT, f"{recording.name} heard nothing of {subject_id}")
            elif heard[subject_id] < newest.get(subject_id, 0):
                report(
                    Rule.STREAM_STALE,
                    f"{recording.name} ends at version {heard[subject_id]} of {subject_id}, "
                    f"which is at {newest[subject_id]}",
                )


def _check_order(recording: Recording, report: Report) -> None:
    """Versions rise; the first message after a connection may repeat what was heard, and is not older either."""
    latest: dict[str, int] = {}
    repeatable: set[str] = set()
    for entry in recording.entries:
        if entry.mark is Mark.CONNECTED:
            repeatable = set(latest)
        if entry.mark is not None:
            continue
        before = latest.get(entry.subject_id, 0)
        is_repeat = entry.version == before and entry.subject_id in repeatable
        repeatable.discard(entry.subject_id)
        if entry.version <= before and not is_repeat:
            report(
                Rule.STREAM_REVERSAL,
                f"{recording.name} heard version {entry.version} of {entry.subject_id} after {before}",
            )
        latest[entry.subject_id] = max(before, entry.version)


def _check_backlog(case: Case, recording: Recording, report: Report) -> None:
    """After a pause at most one message per subject waited: the newest there was."""
    waited: defaultdict[str, int] = defaultdict(int)
    resumed_s, is_counting = 0.0, False
    for entry in recording.entries:
        if entry.mark is Mark.RESUMED:
            resumed_s, is_counting = entry.at_s, True
            waited.clear()
        elif entry.mark is not None:
            is_counting = False
        elif is_counting and _was_over(case, entry, resumed_s):
            waited[entry.subject_id] += 1
            if waited[entry.subject_id] == 1:
                report(
                    Rule.STREAM_BACKLOG,
                    f"{recording.name} found version {entry.version} of {entry.subject_id} waiting "
                    "after a newer one was there",
                )


def _was_over(case: Case, entry: Heard, at_s: float) -> bool:
    """Whether this state of a sale was over by then."""
    timeline = case.timelines.get(entry.subject_id)
    state = None if timeline is None else timeline.at_version(entry.version)
    return state is not None and state.until_s < case.wall(at_s)


def _check_payload(case: Case, recording: Recording, entry: Heard, report: Report) -> None:
    if entry.status is not None:
        event = case.event_at(entry.subject_id, entry.version)
        if event is None or event.status != entry.status:
            report(Rule.STREAM_PAYLOAD, f"{recording.name} heard {entry}, the history has {event}")
        return
    if entry.subject_id not in case.timelines:
        return
    state = case.timelines[entry.subject_id].at_version(entry.version)
    if state is None or _stock(entry.stock) != state.stock:
        report(Rule.STREAM_PAYLOAD, f"{recording.name} heard {entry}, there was {state}")
        return
    free = {row.ticket_type_id: row.capacity - row.held - row.sold for row in entry.stock}
    in_all = entry.available_in_all
    if (entry.available and dict(entry.available) != free) or in_all not in {None, sum(free.values())}:
        report(Rule.STREAM_PAYLOAD, f"{recording.name} heard {entry}, available are {free}")


def check_read_model(case: Case, report: Report) -> None:
    """No difference was found."""
    for line in case.evidence.read_model or ():
        report(Rule.READ_MODEL, line)


def _stock(rows: tuple[StockRow, ...]) -> dict[str, tuple[int, int, int]]:
    return {row.ticket_type_id: (row.capacity, row.held, row.sold) for row in rows}
