"""`make fuzz`: many inputs of each kind, and what became of them. Ends in 1 if one ended as none should."""

import reprlib
import sys
import traceback
import warnings
from collections import Counter

from hypothesis import HealthCheck, Phase, given, seed, settings

from coral_lab.sources.border import brief
from tests.fuzz.carry import KINDS, SHARES, mini, outcome


def shown(value: object) -> str:
    """The value, as far as a terminal can bear it."""
    longer = reprlib.Repr()
    longer.maxstring = longer.maxother = 300
    longer.maxdict = longer.maxlist = 20
    try:
        return longer.repr(value)
    except ValueError:  # a number of 5,000 digits
        return f"a {type(value).__name__} with a large number"


def tried(kind: str, count: int, start: int) -> bool:
    """Prints what became of so many inputs of a kind; whether all ended as they should."""
    errors: Counter[str] = Counter()
    faults: dict[str, str] = {}
    slowest, longest = 0.0, ""

    @seed(start)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(KINDS[kind][0])
    def one(value) -> None:
        nonlocal slowest, longest
        try:
            error, seconds = outcome(kind, value)
        except Exception as fault:
            at = traceback.extract_tb(fault.__traceback__)[-1]
            place = f"{type(fault).__name__} at {at.filename.rpartition('/')[2]}:{at.lineno}"
            faults.setdefault(place, f"{brief(str(fault))} of {shown(value)}")
            errors[f"FAULT {place}"] += 1
            return
        errors[type(error).__name__ if error else "read"] += 1
        slowest, longest = max(slowest, seconds), max(longest, str(error or ""), key=len)

    one()
    counts = ", ".join(f"{name} {number:,}" for name, number in errors.most_common())
    print(f"{kind}: {errors.total():,} inputs: {counts}; slowest {slowest:.2f} s")
    print(f"  longest message, {len(longest)} characters: {longest}")
    for place, what in faults.items():
        print(f"  {place}: {what}")
    return not faults


def main() -> int:
    count, start = (int(own) for own in [*sys.argv[1:], "20000", "0"][:2])
    only = sys.argv[3:] or list(KINDS)
    warnings.simplefilter("ignore")
    mini()  # not part of the first input's time
    rest = (1 - sum(SHARES.values())) / (len(KINDS) - len(SHARES))
    ended = [tried(kind, max(1, round(count * SHARES.get(kind, rest))), start) for kind in only]
    return 0 if all(ended) else 1


if __name__ == "__main__":
    sys.exit(main())
