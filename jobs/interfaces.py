"""The network interface by which the ranks of a job reach each other.

Gloo looks up this host's own name, which on Debian leads to 127.0.1.1, and tells that address to the other nodes; NCCL
takes the first interface that it finds. Neither need be the network in which the ranks have met.
"""

import contextlib
import fcntl
import os
import socket
import struct

_SIOCGIFADDR = 0x8915
"""Request to Linux for the IPv4 address of an interface."""
GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
_EXPORTED = "JOBS_SOCKET_IFNAMES"
"""Variable with the names of those two that this package has set, so that child processes can tell too."""


def is_loopback(address: str) -> bool:
    """Whether an IPv4 address leads only to this machine."""
    return address.startswith("127.")


def addresses() -> dict[str, str]:
    """The IPv4 address of each network interface that has one, by the name of the interface."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        for _, name in socket.if_nameindex():
            # An interface without an address is an error.
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(query, _SIOCGIFADDR, struct.pack("256s", name.encode()))
                found[name] = socket.inet_ntoa(answer[20:24])
    return found


def export_interface(address: str) -> str:
    """Let Gloo and NCCL use the interface with this address, for this process and its children.

    A variable that the user has set stays. NCCL is left alone on one machine, and where there is an InfiniBand
    interface, which it prefers by itself.

    Args:
        address: address of this node at which other ranks reach it, or from which it reaches them.

    Returns:
        The interface, or "" if there is none with the address.
    """
    interfaces = addresses()
    # All of 127.0.0.0/8 is the loopback interface, also 127.0.1.1.
    wanted = "127.0.0.1" if is_loopback(address) else address
    name = next((name for name, own in interfaces.items() if own == wanted), "")
    if not name:
        return ""
    _export(GLOO, name)
    has_infiniband = any(other.startswith("ib") for other in interfaces)
    if not is_loopback(address) and not has_infiniband:
        # Without the sign, NCCL would take eth0 for eth01 too.
        _export(NCCL, f"={name}")
    return name


def exported_here() -> set[str]:
    """The variables that `export_interface` has set, here or in a parent process: none is a choice of the user's.

    A job that is submitted from here may run on nodes whose interfaces have other names, so it must not inherit them.
    """
    names = os.environ.get(_EXPORTED, "").split()
    return {*names, _EXPORTED} if names else set()


def _export(variable: str, interface: str) -> None:
    if variable not in os.environ:
        os.environ[variable] = interface
        os.environ[_EXPORTED] = " ".join(sorted({*os.environ.get(_EXPORTED, "").split(), variable}))
