"""What a compute host is: CPUs, memory, devices, storage, and the standard traits that follow from them.

Pure: libvirt's documents go in as text, values come out. Knows nothing of resource providers, policies or connections.
"""
