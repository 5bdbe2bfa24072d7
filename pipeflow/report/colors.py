"""Colours for parts, links and runs: colour-blind readers tell the first eight apart, and no two are ever the same."""

import colorsys

_FIRST = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255", "#999933")
_GOLDEN = 0.618034
"""Hues that are this far apart on the circle never come near each other soon."""
_DASHES = ("solid", "dashed", "dotted", "dotdash")

WHOLE_COLOR, JOINT_COLOR, GATHER_COLOR = "#e0c000", "#777777", "#222222"
"""Of end-to-end phases, of phases in which several parts train, and of the gather."""

SPAN_COLORS = {"compute": "#2b6cb0", "wait": "#cbd5e0", "send": "#dd6b20", "receive": "#38a169", "load": "#805ad5"}
"""Of the kinds of spans in a timeline."""


def color_of(index: int) -> str:
    """The colour of the part, link or run with this index, as `#rrggbb`."""
    if index < len(_FIRST):
        return _FIRST[index]
    beyond = index - len(_FIRST)
    lightness = (0.36, 0.56, 0.46)[beyond % 3] + 0.0003 * beyond % 0.05
    red, green, blue = colorsys.hls_to_rgb(beyond * _GOLDEN % 1, lightness, 0.75)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def dash_of(index: int) -> str:
    """The style of the curve with this index, for where more curves stand together than eyes tell colours apart."""
    return _DASHES[index // len(_FIRST) % len(_DASHES)]
