"""The way to a libvirt daemon: connections, deadlines, events, errors, and a host's documents read through them.

Knows libvirt and the form of its documents; must not know what a disk or a resource provider is.
"""
