"""Comparing what the journal, the volume service, the hosts and the guests say, and mending what disagrees.

Knows every store and reads them all. Must not mend anything unasked, nor by a way of its own: remedies are the steps
of the workflow.
"""
