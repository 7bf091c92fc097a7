"""The forest of resource providers: its values, its names, and edits planned before they have any effect.

Knows providers, inventories, traits, aggregates and what is in use; must not know databases, requests or consumers.
Pure: values in, values out.
"""
