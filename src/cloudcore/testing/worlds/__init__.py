"""Small worlds: seeded racks, cells, flavors, instances and histories of a chosen size, in one call.

::

    with small_world(seed=7, cells=2, racks=2, hosts=4, instances=40, history=20) as world:
        world.tree.candidates(world.flavors["network"]).report()

For notebooks, examples, and the tests of whoever builds on cloudcore. :func:`small_world` gives everything over one
database; :func:`forest` and :func:`instance_rows` give the bare data, of any size.
"""

from cloudcore.testing.worlds.forests import FLAVORS, Shape, forest
from cloudcore.testing.worlds.rows import START, instance_rows
from cloudcore.testing.worlds.small import World, small_world
from cloudcore.testing.worlds.values import Event, Guest

__all__ = ["FLAVORS", "START", "Event", "Guest", "Shape", "World", "forest", "instance_rows", "small_world"]
