"""A learning rate given as that of another method: ``kl:lora@1e-5``, ``norm:lora@1e-5``."""

import re
from dataclasses import dataclass

from orthora.methods import compose

_FORM = re.compile(r"(kl|norm):([^@]+)@([-+0-9.eE]+)")


@dataclass(frozen=True)
class Match:
    """What to match, and whom.

    Attributes:
        what: ``"kl"`` or ``"norm"``.
        method: that is matched.
        rate: its learning rate.
    """

    what: str
    method: str
    rate: float

    def __str__(self) -> str:
        return f"{self.what}:{self.method}@{self.rate:g}"


def parse_match(text: str) -> Match:
    """Read it.

    Raises:
        ValueError: for another form, an unknown method, or a rate that is not above 0.
    """
    found = _FORM.fullmatch(text.strip())
    try:
        rate = float(found[3]) if found else 0.0
    except ValueError:
        rate = 0.0
    if found is None or not rate > 0:
        raise ValueError(
            f"learning rate match {text!r} is not of the form 'kl:lora@1e-5' or 'norm:lora@1e-5' "
            "(what to match, a method, its learning rate)"
        )
    return Match(found[1], compose(found[2]).name, rate)
