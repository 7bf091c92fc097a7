"""From a host's facts to its resource providers: desired, compared with what is there, and brought about.

Knows facts and the methods of :class:`~cloudcore.hypervisor.ProviderTree`; must not know libvirt, disks or databases.
"""
