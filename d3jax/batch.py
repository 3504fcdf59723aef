"""The schema of the fields, and the arrays that rows become in a batch."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from d3jax.checks import check_scenarios
from d3jax.errors import DataError
from d3jax.typed import from_json

UNKNOWN = 0
"""The id, in every field, of a value that training never saw or saw too rarely."""

EMPTY = -1
"""The id of an unused slot of a multi-valued field; it takes no part in the mean."""


Kind = Literal["integer", "decimal", "boolean", "text"]
"""The kind of a field's values, which fixes how they are spelt (`d3jax.data.encoding`)."""


class Batch(NamedTuple):
    """B rows, padded to a fixed size; `mask` is false where a row is padding.

    The arrays are NumPy's on the host and JAX's on a device.
    """

    ids: Int[Any, "B K"]
    scenario: Int[Any, " B"]
    label: Float[Any, " B"]
    mask: Bool[Any, " B"]


@dataclass(frozen=True)
class Field:
    """One categorical field: its ids are 0 (unknown) to `size - 1`, in `slots` id columns.

    `kind` is what its values are and `fingerprint` a hash of all that gives them their ids
    (`d3jax.data.encoding`); empty where nothing is encoded by this schema.
    """

    name: str
    size: int
    slots: int = 1
    kind: Kind = "text"
    fingerprint: str = ""


@dataclass(frozen=True)
class Schema:
    """The fields of a row in column order, and the scenarios that rows are grouped by.

    `scenario_field` names the field that tells the model the scenario, `user_field` and
    `item_field` those that identify the two sides; None where the data has no such field.
    `fingerprint` is a hash of the rules that give a row its scenario and its label.
    """

    fields: tuple[Field, ...]
    scenarios: tuple[str, ...]
    scenario_field: str | None = None
    user_field: str | None = None
    item_field: str | None = None
    fingerprint: str = ""

    def __post_init__(self) -> None:
        names = [field.name for field in self.fields]
        if not names or not self.scenarios:
            raise DataError("a schema needs at least one field and one scenario")
        if repeated := [name for name, count in Counter(names).items() if count > 1]:
            raise DataError(f"field {repeated[0]!r} appears twice in the schema; rename one")
        check_scenarios(self.scenarios)
        for field in self.fields:
            if field.size < 1 or field.slots < 1:
                raise DataError(
                    f"field {field.name!r} has size {field.size} and {field.slots} slots; "
                    "both must be at least 1"
                )
        for role in (self.scenario_field, self.user_field, self.item_field):
            if role is not None and role not in names:
                raise DataError(f"field {role!r} has a role in the schema but is not among {names}")

    @property
    def num_fields(self) -> int:
        """N."""
        return len(self.fields)

    @property
    def num_slots(self) -> int:
        """K, the width of the id matrix."""
        return sum(field.slots for field in self.fields)

    @property
    def num_rows(self) -> int:
        """V, the rows of the one embedding table that all fields share."""
        return sum(field.size for field in self.fields)

    @property
    def num_scenarios(self) -> int:
        """S."""
        return len(self.scenarios)

    @cached_property
    def slot_field(self) -> np.ndarray:
        """[K] the index of the field that owns each id slot."""
        return np.repeat(np.arange(self.num_fields), [field.slots for field in self.fields])

    @cached_property
    def slot_offset(self) -> np.ndarray:
        """[K] the table row at which each slot's field begins."""
        starts = np.cumsum([0] + [field.size for field in self.fields[:-1]])
        return starts[self.slot_field].astype(np.int32)

    @cached_property
    def first_slot(self) -> np.ndarray:
        """[N] the first id slot of each field, which tells whether it has a known value."""
        return np.flatnonzero(np.diff(self.slot_field, prepend=-1))

    @property
    def user_slot(self) -> int | None:
        """The first id slot of the user field, None where there is no such field."""
        if self.user_field is None:
            return None
        return int(self.first_slot[self.index(self.user_field)])

    def index(self, name: str) -> int:
        """The position of the field called `name`; raises `DataError` when there is none."""
        for position, field in enumerate(self.fields):
            if field.name == name:
                return position
        raise DataError(
            f"no field {name!r} in the schema; it has {[field.name for field in self.fields]}"
        )

    def check(
        self,
        ids: np.ndarray,
        scenario: np.ndarray,
        where: str = "the batch",
        first_row: int = 0,
    ) -> None:
        """Raises `DataError` naming field, row and value when an id or scenario is out of range.

        Rows are counted from `first_row`. Ids must be checked on the host: on a device an index
        out of range is clamped in silence.
        """
        if ids.ndim != 2 or ids.shape[1] != self.num_slots:
            raise DataError(
                f"{where} has ids of shape {ids.shape}; the schema needs [rows, {self.num_slots}]"
            )
        low = ids.min(axis=0, initial=UNKNOWN)
        high = ids.max(axis=0, initial=UNKNOWN)
        for slot, owner in enumerate(self.slot_field):
            field = self.fields[owner]
            first = slot == 0 or self.slot_field[slot - 1] != owner
            least = UNKNOWN if first else EMPTY
            if low[slot] >= least and high[slot] < field.size:
                continue
            column = ids[:, slot]
            row = int(np.argmax((column < least) | (column >= field.size)))
            raise DataError(
                f"field {field.name!r}: id {column[row]} in row {first_row + row} of {where} "
                f"is outside [{least}, {field.size}); prepare the data again with this schema"
            )
        bad = (scenario < 0) | (scenario >= self.num_scenarios)
        if bad.any():
            row = int(np.argmax(bad))
            raise DataError(
                f"scenario {scenario[row]} in row {first_row + row} of {where} is unknown; "
                f"the schema has {self.num_scenarios}: {', '.join(self.scenarios)}"
            )

    def differences(self, other: Schema) -> list[str]:
        """Say in what `other` gives rows other ids, scenarios or labels; nothing if in nothing."""
        ours, theirs = ({field.name: field for field in each.fields} for each in (self, other))
        lines = [f"field {name!r} is missing" for name in ours.keys() - theirs.keys()]
        lines += [f"field {name!r} is new" for name in theirs.keys() - ours.keys()]
        for name in sorted(ours.keys() & theirs.keys()):
            lines += _differences(ours[name], theirs[name])
        if not lines and tuple(ours) != tuple(theirs):
            lines.append(f"the fields stand in the order {', '.join(theirs)}")
        for role in ("scenarios", "scenario_field", "user_field", "item_field"):
            mine, yours = getattr(self, role), getattr(other, role)
            if mine != yours:
                lines.append(f"{role} is {yours!r} instead of {mine!r}")
        if self.fingerprint != other.fingerprint:
            lines.append("the rule for the scenario or the label is another")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `schema.json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Schema:
        """The inverse of `to_json`; raises `DataError` naming what it doesn't know or expect."""
        return from_json(cls, value, "schema", DataError)


def _differences(ours: Field, theirs: Field) -> list[str]:
    name = ours.name
    if ours.kind != theirs.kind:
        return [f"field {name!r} holds values of kind {theirs.kind} instead of {ours.kind}"]
    if ours.size != theirs.size:
        return [f"field {name!r} has {theirs.size - 1:,} values instead of {ours.size - 1:,}"]
    if ours.slots != theirs.slots:
        return [f"field {name!r} has {theirs.slots} values a row instead of {ours.slots}"]
    if ours.fingerprint != theirs.fingerprint:
        return [f"field {name!r} gives its values other ids"]
    return []
