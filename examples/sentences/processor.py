"""What figures were measured on."""

from __future__ import annotations


def cpu() -> str:
    """Name the processor."""
    with open("/proc/cpuinfo") as lines:
        names = [x.split(":")[1].strip() for x in lines if x.startswith("model name")]
    return names[0] if names else "a processor without a name"
