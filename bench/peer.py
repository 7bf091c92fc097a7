"""The peer's end of a benchmark: answers calls over its standard streams. Standard library only, any Python from 3.8.

A peer script runs in the peer's own environment:

    import sys
    sys.path.insert(0, sys.argv[1])          # the folder of this file, given by the harness
    import peer

    def load(path): ...                       # set-up calls return something small
    def page(limit): return [...]             # what is compared and timed; JSON values only

    peer.serve(load=load, page=page)

Each call is timed here, inside the peer's process, so neither JSON nor the pipe counts against it.
"""

import gc
import json
import os
import sys
import time
import traceback


def serve(**functions):
    """Answer calls until the harness closes the pipe."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    sys.stdout = sys.stderr
    print(json.dumps({"ready": sorted(functions)}), file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = _carry_out(functions[request["call"]], request)
        except Exception:
            reply = {"error": traceback.format_exc()}
        print(json.dumps(reply), file=replies, flush=True)


def _carry_out(function, request):
    number = request["number"]
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(number):
        answer = function(**request["arguments"])
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"answer": answer if request["answer"] else None, "wall": wall / number, "cpu": cpu / number}
