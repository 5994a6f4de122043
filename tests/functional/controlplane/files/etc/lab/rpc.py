"""Calls every method of nova's compute RPC API on a host, without arguments, and says what came back.

    rpc.py URL HOST SECONDS

One JSON object per line: method, seconds, error (the class of the exception; null for a result). The names are those that the
control plane's own client sends.
"""
import json
import re
import sys
import time

import oslo_messaging
from oslo_config import cfg
from nova import context
from nova import rpc
from nova.compute import rpcapi

url, host, seconds = sys.argv[1:]
conf = cfg.ConfigOpts()
conf([])
transport = oslo_messaging.get_rpc_transport(conf, url)
rpc.TRANSPORT = transport
text = open(rpcapi.__file__).read()
methods = sorted(set(re.findall(r"\b(?:cctxt|client)\.(?:call|cast)\(\s*\w+,\s*['\"](\w+)['\"]", text)))
target = oslo_messaging.Target(topic="compute", server=host, version="6.0")
client = oslo_messaging.RPCClient(transport, target, timeout=float(seconds), serializer=rpc.RequestContextSerializer(None))
caller = context.get_admin_context()
for method in methods:
    start = time.time()
    error = None
    try:
        client.call(caller, method)
    except Exception as e:
        error = type(e).__name__
    print(json.dumps({"method": method, "seconds": round(time.time() - start, 3), "error": error}), flush=True)
