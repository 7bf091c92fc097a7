"""Disks of guests: their XML, plugging and unplugging, and what happens to them in a live migration.

Knows guests and their definitions; must not know what a host offers, nor what volume services keep about a volume.
"""
