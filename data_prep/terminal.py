"""Text of others made safe to show: what would act on a terminal, or reorder a line, is shown instead (pure).

C0 controls and DEL have pictures of their own in Unicode.  C1 controls (U+0080 to U+009F; some terminals take U+009B
and U+009D for ESC [ and ESC ]) and the characters that override the direction of text have none: they are spelled out.
"""

from __future__ import annotations

from typing import Final

_PICTURED: Final = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: "\u2421"}
_SPELLED: Final = (*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_SHOWN: Final = {**_PICTURED, **{code: f"<U+{code:04X}>" for code in _SPELLED}}


def printable(text: str) -> str:
    """The text without a character that acts on a terminal; line ends and tabs stay."""
    return text.translate(_SHOWN)
