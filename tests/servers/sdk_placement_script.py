"""openstacksdk's placement proxy, call by call; runs in the environment of the clients.

python sdk_placement_script.py PORT
"""

from __future__ import annotations

import json
import sys

import openstack

URL = f"http://127.0.0.1:{sys.argv[1]}"
PROVIDER = "66666666-6666-4666-8666-666666666666"
AGGREGATE = "77777777-7777-4777-8777-777777777777"


def main():
    cloud = openstack.connect(
        auth_type="admin_token", auth={"endpoint": URL, "token": "admin"}, placement_endpoint_override=URL
    )
    proxy = cloud.placement
    told = [proxy.create_resource_class(name="CUSTOM_SDK").name, proxy.get_resource_class("CUSTOM_SDK").name]
    told.append(sorted(each.name for each in proxy.resource_classes())[:3])
    told.append(proxy.create_trait("CUSTOM_SDK_TRAIT").name)
    told.append([each.name for each in proxy.traits(name="startswith:CUSTOM_SDK")])
    host = proxy.create_resource_provider(name="sdk-host", id=PROVIDER)
    told.append([host.name, host.generation])
    host = proxy.update_resource_provider(host, name="sdk-host-1")
    told.append([each.name for each in proxy.resource_providers(name="sdk-host-1")])
    stock = proxy.create_resource_provider_inventory(host, "VCPU", total=8)
    told.append([stock.total, stock.resource_class])
    stock = proxy.update_resource_provider_inventory(
        stock,
        resource_provider=host,
        resource_provider_generation=proxy.get_resource_provider(host).generation,
        total=9,
    )
    told.append([[each.resource_class, each.total] for each in proxy.resource_provider_inventories(host)])
    host = proxy.set_resource_provider_aggregates(proxy.get_resource_provider(host), AGGREGATE)
    told.append(proxy.fetch_resource_provider_aggregates(host).aggregates)
    proxy.delete_resource_provider_inventory("VCPU", host)
    proxy.delete_resource_provider(host)
    proxy.delete_trait("CUSTOM_SDK_TRAIT")
    proxy.delete_resource_class("CUSTOM_SDK")
    told.append([each.name for each in proxy.resource_providers(name="sdk-host-1")])
    told.append(proxy.find_resource_provider("sdk-host-1", ignore_missing=True))
    print(json.dumps(told))


main()
