"""Touches: netlink, packet sockets, sysctls, files, the control socket, the service manager."""
