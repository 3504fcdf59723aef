"""Names that have tried to be more than names."""

HOSTILE = (
    "[/b]home",
    "[red]x",
    r"$\frac$ x",
    "pay$_in_$",
    "<script>alert(1)</script>",
    "=cmd|' /C calc'!A0",
    "a|b",
    "`tick`",
    "new\nline",
    "\x1b[31mred\x1b[0m",
    "\u202eevil",
    "zero\u200bwidth",
    "_under",
    "首页推荐" * 15,
    "x" * 60,
    ":smile: &amp; *b* [l](http://x)",
    "{task} %s",
    r"\$x",
    "\udcff",
)
