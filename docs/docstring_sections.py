"""Shows docstrings of the package's style as mkdocstrings knows them.

The docstrings say `Example:` (one), `Call arguments:` as Keras does, and give formulas
on lines that begin with `Forward:` and `Backward:`. Griffe reads `Examples:`, takes
what it does not know for a note, joins lines, and wants no `Returns:` of a class, where
it is what a call returns.
"""

import re
from typing import Any

import griffe

REPLACEMENTS = (
    (re.compile(r"^Example:$", re.MULTILINE), "Examples:"),
    # A line of its own in Markdown.
    (re.compile(r"\n(Backward|Learning): "), r"\n\n\1: "),
    # A comment for doctest, not for readers.
    (re.compile(r" +# doctest: .*$", re.MULTILINE), ""),
)


class DocstringSections(griffe.Extension):
    """Rewrites each docstring when its object was read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites one.

        Args:
            obj: A module, class, function or attribute.
            **kwargs: Of no use here.
        """
        if obj.docstring is not None:
            text = obj.docstring.value
            for pattern, replacement in REPLACEMENTS:
                text = pattern.sub(replacement, text)
            if obj.is_class:
                text = re.sub(r"^Returns:$", "Call returns:", text, flags=re.M)
            obj.docstring.value = text
