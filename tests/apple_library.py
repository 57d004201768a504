"""What stands in for Apple's Accelerate: its header and its four functions, under their names."""

from __future__ import annotations

import re
from pathlib import Path

OURS = Path(__file__).resolve().parents[1] / "include" / "multihead" / "bnns.h"
START = """\
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif
extern int apple_s_filter;
"""
END = """
#ifdef __cplusplus
}
#endif
"""
FUNCTIONS = {
    "BNNSFilterCreateLayerMultiheadAttention": "return &apple_s_filter;",
    "BNNSFilterDestroy": "apple_s_filter = 13;",
    "BNNSApplyMultiheadAttention": "return 11;",
    "BNNSApplyMultiheadAttentionBackward": "return 12;",
}


def write_header(folder: Path) -> None:
    """Write ``<accelerate.h>``: what our header declares, which is what Apple's does."""
    text = OURS.read_text()
    declared = text[text.index("#ifndef BNNS_MAX") : text.index("/* Not Apple's. */")]
    plain = re.sub(r"\s*MULTIHEAD_SYMBOL\(\w+\)|MULTIHEAD_API ", "", declared)
    (folder / "accelerate.h").write_text(START + plain + END)


def write_functions(folder: Path) -> Path:
    """Write the functions, each of which says that it is Apple's; return the file."""
    bodies = [
        f"{'void' if 'Destroy' in name else 'int' if 'Apply' in name else 'void*'} {name}(void) "
        f"{{ {body} }}"
        for name, body in FUNCTIONS.items()
    ]
    file = folder / "accelerate.c"
    file.write_text("\n".join(["int apple_s_filter;", *bodies, ""]))
    return file
