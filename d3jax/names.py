"""The nearest of the known names, for somebody who mistyped or guessed one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

MOST = 3


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question that names what is nearest, in parentheses; empty where nothing is near."""
    near = nearest(name, known)
    if not near:
        return ""
    *others, last = near
    return (
        f" (did you mean {', '.join(others)} or {last}?)" if others else f" (did you mean {last}?)"
    )


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """At most three names: the same but for its hyphens; else those that it abbreviates or is a
    word of; else those that are spelled alike."""
    wanted = _squeezed(name)
    spelled = {each: _squeezed(each) for each in known}
    words = {each: re.findall(r"[a-z0-9]+", each.lower()) for each in spelled}
    same = [each for each in spelled if spelled[each] == wanted]
    within = [each for each in spelled if wanted in (_initials(words[each]), *words[each])]
    within.sort(key=lambda each: len(words[each]))
    letters = difflib.get_close_matches(wanted, spelled.values(), MOST, 0.75)
    alike = [each for found in letters for each in spelled if spelled[each] == found]
    return (same or within or alike)[:MOST] if wanted else []


def _initials(words: list[str]) -> str:
    return "".join(word[0] for word in words) if len(words) > 1 else ""


def _squeezed(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
