"""A process whose system refuses AMX's registers: prints the kernel sets, and how near a result is.

A seccomp filter answers the request with EPERM, as a container may.
"""

from __future__ import annotations

import ctypes
import struct

ARCH_PRCTL, REQUEST = 158, 0x1023  # of x86-64; ARCH_REQ_XCOMP_PERM
LOAD, EQUALS, RETURN = 0x20, 0x15, 0x06  # of classic BPF
ALLOW, REFUSE = 0x7FFF0000, 0x00050001  # the latter with EPERM


def refuse() -> None:
    """Install the filter, for good."""
    steps = [
        (LOAD, 0, 0, 0),  # the system call's number
        (EQUALS, 0, 3, ARCH_PRCTL),
        (LOAD, 0, 0, 16),  # its first argument
        (EQUALS, 0, 1, REQUEST),
        (RETURN, 0, 0, REFUSE),
        (RETURN, 0, 0, ALLOW),
    ]
    code = b"".join(struct.pack("HBBI", *step) for step in steps)
    memory = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, seccomp, with_filter = 38, 22, 2
    for words in ((no_new_privileges, 1, 0, 0, 0), (seccomp, with_filter, program, 0, 0)):
        if libc.prctl(*words):
            raise OSError(ctypes.get_errno(), "prctl")


def main() -> None:
    """Refuse, then import and compute."""
    refuse()
    import ml_dtypes
    import numpy as np

    from multihead import _native
    from multihead.functional import scaled_dot_product_attention

    rng = np.random.default_rng(0)
    q = rng.standard_normal((1, 2, 70, 16)).astype(ml_dtypes.bfloat16)
    wide = q.astype(np.float64)
    exact = scaled_dot_product_attention(wide, wide, wide)
    error = np.abs(scaled_dot_product_attention(q, q, q).astype(np.float64) - exact).max()
    print(_native.isa(), *_native.available_isas())
    print(float(error / np.abs(exact).max()))


if __name__ == "__main__":
    main()
