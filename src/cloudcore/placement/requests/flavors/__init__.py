"""From Nova's words to a request: flavors, images, ports and the rules that Nova 34 reads them by. Pure.

:meth:`cloudcore.ResourceRequest.from_flavor` is the door.
"""
