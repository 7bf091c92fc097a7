"""openstacksdk's compute proxy, call by call; runs in the environment of the clients.

python sdk_compute_script.py URL
"""

from __future__ import annotations

import json
import sys
import urllib.request

import openstack

URL = sys.argv[1]


def post(path, body):
    request = urllib.request.Request(URL + path, json.dumps(body).encode(), {"content-type": "application/json"})
    request.add_header("x-auth-token", "sdk")
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def main():
    cloud = openstack.connect(
        auth_type="admin_token", auth={"endpoint": URL, "token": "sdk"}, compute_endpoint_override=URL
    )
    compute = cloud.compute
    told = {}
    flavor = compute.find_flavor("m1.small")
    server = compute.create_server(name="sdk-0", flavor_id=flavor.id, image_id="image", networks="none")
    server = compute.wait_for_server(server)
    told["status after boot"] = server.status
    again = compute.create_server(
        name="sdk-1",
        flavor_id="1",
        networks="none",
        metadata={"fail_on": server.compute_host or server.hypervisor_hostname},
    )
    again = compute.get_server(again.id)
    told["host that failed"], told["host after a failure"] = server.compute_host, again.compute_host
    for number in range(2, 5):
        compute.create_server(name=f"sdk-{number}", flavor_id="1", networks="none")
    told["listed, page by page"] = [
        each.name for each in compute.servers(limit=2, sort_key="display_name", sort_dir="asc")
    ]
    compute.resize_server(server, "3")
    status = compute.get_server(server.id).status
    compute.confirm_server_resize(server)
    after = compute.get_server(server.id)
    told["resized"] = [status, after.status, after.flavor.id]
    compute.migrate_server(server)
    status = compute.get_server(server.id).status
    compute.revert_server_resize(server)
    after = compute.get_server(server.id)
    told["reverted"] = [status, after.status, after.flavor.id]
    volume = post("/volumes", {"size": 1})["id"]
    compute.create_volume_attachment(server, volume_id=volume)
    first = len(list(compute.volume_attachments(server)))
    compute.delete_volume_attachment(server, volume)
    told["attached"] = [first, len(list(compute.volume_attachments(server)))]
    compute.delete_server(server)
    told["gone"] = compute.find_server("sdk-0", ignore_missing=True) is None
    print(json.dumps(told))


main()
