"""Changes of a prompt, by kind: paraphrase, other verb, other noun, negation, nothing. Small word lists, no model."""

from __future__ import annotations

import re
from collections.abc import Sequence

# "pick up" keeps its number of words, so that a model that counts words only is not said to read them.
VERBS = {
    "pick up": "push away",
    "pick": "push",
    "put": "take",
    "place": "remove",
    "open": "close",
    "close": "open",
    "push": "pull",
    "pull": "push",
    "move": "hold",
    "grasp": "push",
    "grab": "push",
    "lift": "lower",
    "take": "put",
    "turn on": "turn off",
    "turn off": "turn on",
}
SYNONYMS = {
    "pick up": "grab",
    "put": "set",
    "place": "set",
    "grasp": "grab",
    "move": "bring",
    "take": "grab",
    "push": "shove",
}
GROUPS: tuple[tuple[str, ...], ...] = (
    ("red", "blue", "green", "yellow", "black", "white", "orange", "purple", "pink", "brown"),
    ("fragile", "rigid"),
    (
        "cup",
        "bowl",
        "plate",
        "mug",
        "bottle",
        "can",
        "spoon",
        "fork",
        "knife",
        "block",
        "cube",
        "box",
        "book",
    ),
    ("drawer", "door", "cabinet"),
    ("left", "right"),
)
"""Words of one group name different things of one sort: swapping them asks for another thing."""


def swap_verb(prompt: str) -> str | None:
    """Return the prompt with its first known verb exchanged for one that asks for something else; None without."""
    return _replaced(prompt, VERBS)


def paraphrase(prompt: str) -> str | None:
    """Return the prompt with its verb exchanged for a synonym; None when none is known."""
    return _replaced(prompt, SYNONYMS)


def swap_noun(prompt: str, *, among: Sequence[str] = ()) -> str | None:
    """Return the prompt asking for another thing: its naming words exchanged within their group; None without one.

    Args:
        prompt: The prompt.
        among: Words that may come in; empty allows every word of the group. The next word of the group is taken.
    """
    out, changed = [], False
    for word in re.findall(r"\w+|\W+", prompt):
        group = next((g for g in GROUPS if word.lower() in g), None)
        choices = [w for w in group or () if not among or w in among]
        others = [w for w in choices if w != word.lower()]
        if not others:
            out.append(word)
            continue
        at = (group or ()).index(word.lower())
        out.append(next((w for w in others if (group or ()).index(w) > at), others[0]))
        changed = True
    return "".join(out) if changed else None


def negate(prompt: str) -> str:
    """Return the prompt with "do not" before it."""
    return f"do not {prompt}"


def _replaced(prompt: str, words: dict[str, str]) -> str | None:
    found = sorted(words, key=lambda w: -len(w))
    match = re.search(rf"\b({'|'.join(map(re.escape, found))})\b", prompt, flags=re.IGNORECASE)
    if match is None:
        return None
    return prompt[: match.start()] + words[match.group(1).lower()] + prompt[match.end() :]
