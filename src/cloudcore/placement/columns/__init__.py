"""The forest laid out in columns: immutable blocks of whole trees, kept in step with the forest.

Knows how numbers of providers lie side by side; must not know what is asked for. Pure.
"""
