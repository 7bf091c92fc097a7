"""What is asked for: groups of resources with their conditions, and the query language that they are written in.

Knows the words of a request and the rules that make it well-formed; must not know any provider. Pure.
"""
