"""What was changed when a run was resumed: a line of history.jsonl."""

from typing import Any

from opdlm.records.record import Record


class Resumption(Record):
    """Attributes:
    rollouts_begun: done or under way when the run was resumed.
    changed: setting, "group.member" where there are groups -> its value before and after.
    """

    rollouts_begun: int
    changed: dict[str, tuple[Any, Any]]
