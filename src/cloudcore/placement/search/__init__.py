"""The search: which providers could hold a request, in which order, and why the others could not.

Knows requests and columns; must not know consumers, cells or databases. Nothing is claimed here. Pure.
"""
